"""What a network costs, from its arguments alone: parameters, multiply-adds, work.

Knows the design space; nothing of sampling or training.
"""
