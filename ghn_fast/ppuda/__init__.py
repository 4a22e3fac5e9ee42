"""The names of facebookresearch/ppuda, for programs that were written for it.

``from ppuda.ghn.nn import GHN2`` becomes ``from ghn_fast.ppuda.ghn.nn import GHN2``; modules,
classes and arguments are called as there, and everything is done by the classes of `ghn_fast`.
docs/from-ppuda.md lists what to use in new programs and what differs. Nothing in `ghn_fast`
imports this package.
"""
