"""Inputs are worked out from the model, and what was tried is told where none runs."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ghn_fast.graph.trace.inputs import guess_inputs
from ghn_fast.graph.trace.tracer import TraceError, trace
from tests.graph.test_trace import Runs


class Flat(nn.Module):
    """Convolutions that halve, then a linear layer over the whole map."""

    def __init__(self, dims: int, channels: int, side: int, layers: int = 2) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        widths = [channels, *(8,) * layers]
        pairs = pairwise(widths)
        self.layers = nn.Sequential(*(conv(a, b, 3, 2, 1) for a, b in pairs))
        self.head = nn.Linear(8 * side**dims, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).flatten(1))


@pytest.mark.parametrize(
    ("dims", "channels", "side"),
    [(2, 1, 7), (2, 3, 8), (2, 4, 13), (2, 3, 57), (1, 1, 4000), (1, 2, 333), (3, 1, 8)],
)
def test_size_that_a_flat_layer_needs(dims: int, channels: int, side: int) -> None:
    assert not trace(Flat(dims, channels, side)).unused


def test_classifiers_of_digits() -> None:
    class Net(nn.Module):
        def __init__(self, padding: int) -> None:
            super().__init__()
            self.c1, self.c2 = nn.Conv2d(1, 6, 5, padding=padding), nn.Conv2d(6, 16, 5)
            self.f1 = nn.Linear(16 * 5 * 5, 10)

        def forward(self, x: Tensor) -> Tensor:
            for conv in (self.c1, self.c2):
                x = nn.functional.max_pool2d(conv(x).relu(), 2)
            return self.f1(x.view(x.size(0), -1))

    for padding in (0, 2):
        assert not trace(Net(padding)).unused


class Patches(nn.Module):
    """A transformer's stem whose positions alone tell how large its images are."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, 8)
        self.positions = nn.Parameter(torch.zeros(1, (size // 8) ** 2, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head((self.positions + x).mean(1))


@pytest.mark.parametrize("size", [64, 72, 200])
def test_size_that_a_table_of_positions_needs(size: int) -> None:
    assert not trace(Patches(size)).unused


class Sized(nn.Module):
    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(5, 4, 3)
        self.part = nn.Module()
        for name, value in attributes.items():
            setattr(self.part, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize("size", [{"img_size": 72}, {"image_size": (72, 72)}])
def test_size_that_a_part_tells(size: dict[str, object]) -> None:
    (x,), _ = guess_inputs(Sized(**size))
    assert x.shape == (2, 5, 72, 72)


def test_a_length_of_a_signal_is_no_size_of_images() -> None:
    (x,), _ = guess_inputs(Sized(img_size=65536))
    assert x.shape == (2, 5, 224, 224)


def test_channels_come_before_metadata() -> None:
    model = Sized()
    model.default_cfg = {"input_size": (3, 96, 96)}
    (x,), _ = guess_inputs(model)
    assert x.shape == (2, 5, 96, 96)


def sequence(layer: nn.Module, width: int) -> nn.Module:
    def run(model: Runs, x: Tensor) -> Tensor:
        y = model.layer(x)
        return model.head(y[0] if isinstance(y, tuple) else y)

    return Runs(run, layer=layer, head=nn.Linear(width, 2))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "LSTM": lambda: sequence(nn.LSTM(28, 8, batch_first=True), 8),
    "GRU": lambda: sequence(nn.GRU(5, 8), 8),
    "encoder": lambda: sequence(nn.TransformerEncoderLayer(12, 2), 12),
    "features": lambda: sequence(nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 3)), 3),
    "tokens": lambda: sequence(nn.Embedding(11, 6), 6),
    "normed": lambda: sequence(nn.Sequential(nn.LayerNorm(9), nn.Linear(9, 4)), 4),
    "signal": lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
    "video": lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()),
    "generator": lambda: nn.Sequential(nn.ConvTranspose2d(16, 3, 4), nn.Tanh()),
}


@pytest.mark.parametrize("kind", MODELS)
def test_first_layers(kind: str) -> None:
    assert not trace(MODELS[kind]()).unused


def test_layer_that_is_registered_first_but_called_last() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        return model.head(model.conv(x).mean((2, 3)))

    assert not trace(Runs(run, head=nn.Linear(4, 2), conv=nn.Conv2d(1, 4, 3))).unused


ARGUMENTS: dict[str, Callable[[], nn.Module]] = {
    "step": lambda: Runs2(nn.Conv2d(3, 4, 3), nn.Embedding(9, 4)),
    "pair": lambda: Pair(nn.Linear(6, 2)),
}


class Runs2(nn.Module):
    """Of images and the steps of a diffusion."""

    def __init__(self, conv: nn.Module, steps: nn.Module) -> None:
        super().__init__()
        self.conv, self.steps = conv, steps

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        return self.conv(x) + self.steps(timestep)[:, :, None, None]


class Pair(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(left) - self.layer(right)


class Denoiser(nn.Module):
    """Its arguments have a default that it cannot do without, as some of diffusers'."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"cross_attention_dim": 5}
        self.conv, self.steps, self.text = nn.Conv2d(3, 4, 3), nn.Embedding(9, 4), nn.Linear(5, 4)

    def forward(
        self,
        sample: Tensor,
        timestep: Any = None,
        encoder_hidden_states: Any = None,
        return_dict: bool = True,
    ) -> Tensor:
        words = self.text(encoder_hidden_states).mean(1)
        return self.conv(sample) + (self.steps(timestep) + words)[:, :, None, None]


def test_arguments_with_a_default_that_is_none() -> None:
    assert not trace(Denoiser()).unused


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_further_arguments_by_their_names(kind: str) -> None:
    assert not trace(ARGUMENTS[kind]()).unused


def test_course_that_depends_on_values_is_followed_at_once() -> None:
    sizes = []

    def run(model: Runs, x: Tensor) -> Tensor:
        sizes.append(x.shape[-1])
        return model.a(x) if x.sum() < 1 else x

    assert not trace(Runs(run, a=nn.Conv2d(3, 4, 3))).unused
    assert sizes == [224, 224]


def test_all_that_was_tried_is_told() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        raise ValueError("needs a moon\nand stars") from KeyError("the cause:\nno moon")

    with pytest.raises(TraceError) as caught:
        trace(Runs(run, a=nn.Linear(4, 4), b=nn.Conv2d(3, 4, 3)))
    message = str(caught.value)
    parts = ("<float32 (2, 4)>", "and ", "no moon", "example_inputs", "({...},)", "takes args")
    for part in parts:
        assert part in message
    assert len(message) < 1000


def test_the_whole_of_the_innermost_error_is_told() -> None:
    def run(model: Runs, x: Tensor) -> Tensor:
        raise ValueError("first line\nsecond line")

    with pytest.raises(TraceError, match=r"(?s)first line\nsecond line.*\(\{\.\.\.\},\)"):
        trace(Runs(run, a=nn.Linear(4, 4)), torch.zeros(2, 4))


def test_a_dict_as_the_argument() -> None:
    model = Runs(lambda model, batch: model.a(batch["x"]), a=nn.Linear(4, 4))
    batch = {"x": torch.zeros(2, 4)}
    assert not trace(model, (batch,)).unused
    with pytest.raises(TraceError, match=r"\(\{\.\.\.\},\)"):
        trace(model, batch)


class Graphs(nn.Module):
    """Takes one object that holds tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, data: Any) -> Tensor:
        return self.layer(data.x)


def test_an_object_as_the_argument() -> None:
    data = SimpleNamespace(x=torch.zeros(3, 4))
    assert not trace(Graphs(), (data,)).unused
    with pytest.raises(TypeError, match=r"SimpleNamespace; .* goes into a tuple: \(data,\)"):
        trace(Graphs(), data)
    with pytest.raises(TraceError, match=r"goes into a tuple: .*\(data,\)"):
        trace(Graphs())


class Configured(nn.Module):
    """As of transformers: all that it is called with has a name, and a configuration tells more."""

    def __init__(self, config: dict[str, Any], **parts: nn.Module) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="stand-in", **config)
        for name, part in parts.items():
            setattr(self, name, part)


class Tower(Configured):
    """Of images that are cut into patches: how many rows are an image's is told by an argument."""

    def forward(self, hidden_states: Tensor, grid_thw: Tensor) -> Tensor:
        patches = self.patches(hidden_states.view(-1, 3, 2, 4, 4)).flatten(1)
        means = [part.mean(0) for part in patches.split(grid_thw.prod(1).tolist())]
        return self.head(torch.stack(means))


class SoundsAndTexts(Configured):
    """Of spectra (B, bins, T) and token ids, neither of which it can do without."""

    def forward(self, input_ids: Any = None, input_features: Any = None) -> Tensor:
        return self.ids(input_ids).mean(1) + self.bins(input_features).mean(2)


class LongSounds(Configured):
    """Of spectra (B, views, T, bins), as CLAP's are."""

    def forward(self, input_features: Tensor, is_longer: Any = None) -> Tensor:
        pieces = self.pieces(input_features[:, 1:]).mean((2, 3)) * is_longer
        return self.bins(input_features[:, 0]).mean(1) + pieces

    main_input_name = "input_features"


class Documents(Configured):
    """Of words and where they stand on the page."""

    def forward(self, input_ids: Any = None, bbox: Any = None) -> Tensor:
        return self.ids(input_ids) + self.boxes(bbox * self.config.scale)


class Pages(Configured):
    """Of words and, beside them, the image of their page, if it is given."""

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Tensor:
        words = self.ids(input_ids).mean(1)
        return words if pixel_values is None else words + self.image(pixel_values).mean((2, 3))


class Boxed(Configured):
    """Of images, words, and what nobody can know."""

    main_input_name = "pixel_values"

    def forward(
        self, pixel_values: Any = None, input_ids: Any = None, places: Any = None
    ) -> Tensor:
        words = self.ids(input_ids).mean(1)
        return words if pixel_values is None else words + self.image(pixel_values)[places]


class Series(Configured):
    """Of the values of a time series before now, some of them long before, and of times."""

    main_input_name = "past_values"

    def forward(
        self,
        past_values: Tensor,
        past_time_features: Tensor,
        past_observed_mask: Tensor,
        future_values: Any = None,
        future_time_features: Any = None,
    ) -> Tensor:
        now = self.past((past_values * past_observed_mask)[:, 3:] - past_values[:, :-3])
        return now + self.times(past_time_features).mean(1) + self.times(future_time_features)[:, 0]


class Channels(Configured):
    """Of texts, decoded into sounds of several channels (B, T, channels), as Dia's are."""

    def forward(self, input_ids: Any = None, decoder_input_ids: Any = None) -> Tensor:
        steps = decoder_input_ids.shape[1]
        codes = self.codes(decoder_input_ids.view(-1, steps * 9)).view(-1, steps, 9, 4)
        return self.ids(input_ids).mean(1, keepdim=True) + codes.sum(2)


class Pairs(Configured):
    """Of two images that are matched, or of the frames of a film, each convolved by itself."""

    main_input_name: Any = "pixel_values"

    def forward(self, pixel_values: Tensor) -> Tensor:
        batch, frames, *shape = pixel_values.shape
        assert frames == getattr(self.config, "num_frames", 2)
        each = self.image(pixel_values.view(-1, *shape)).mean((2, 3))
        return each.view(batch, frames, -1).sum(1)


class Tasks(Pairs):
    """Which names what it cannot do without, as OneFormer does."""

    main_input_name = ("pixel_values", "pixel_mask")


class Films(Pairs):
    """Of words and, beside them, frames."""

    main_input_name = "input_ids"

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Tensor:
        return self.ids(input_ids).mean(1) + super().forward(pixel_values)


class Queries(Configured):
    """Of images and two texts, one of them with marks where the image stands."""

    main_input_name = "pixel_values"

    def forward(
        self,
        pixel_values: Tensor,
        query_input_ids: Tensor,
        input_ids: Any = None,
        image_embeds_position_mask: Any = None,
    ) -> Tensor:
        words = self.ids(input_ids) + self.ids(query_input_ids)
        words[image_embeds_position_mask] = self.image(pixel_values).mean((2, 3))[:1]
        return words


class Heard(Configured):
    """Of spectra of whole windows, and which of their steps are no padding."""

    main_input_name = "input_features"

    def forward(self, input_features: Tensor, input_features_mask: Tensor) -> Tensor:
        if input_features.shape[2] % (2 * self.config.n_window):
            raise ValueError("whole windows are needed")
        return self.bins(input_features) * input_features_mask[:, None, 2:]


class Placeholders(Configured):
    """Of words, as many of which stand for what is shown beside them as that has features."""

    def get_image_features(self, pixel_values: Tensor, image_sizes: Tensor) -> Any:
        assert pixel_values.shape[-2:] == tuple(image_sizes[0].tolist())
        features = self.image(pixel_values).flatten(2).transpose(1, 2)
        return SimpleNamespace(pooler_output=tuple(features))

    def get_audio_features(self, input_features: Tensor, input_features_mask: Tensor) -> Tensor:
        return self.bins(input_features * input_features_mask[:, None]).transpose(1, 2)

    def forward(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        image_sizes: Any = None,
        input_features: Any = None,
        input_features_mask: Any = None,
    ) -> Tensor:
        words = self.ids(input_ids)
        if pixel_values is not None:
            seen = torch.cat(self.get_image_features(pixel_values, image_sizes).pooler_output)
            words = self.shown(words, input_ids == self.config.image_token_id, seen)
        if input_features is not None:
            heard = self.get_audio_features(input_features, input_features_mask)
            words = self.shown(words, input_ids == self.config.audio_token_index, heard)
        return words

    def shown(self, words: Tensor, places: Tensor, features: Tensor) -> Tensor:
        mask = places[..., None].expand_as(words)
        if words[mask].numel() != features.numel():
            raise ValueError("as many placeholders as features are needed")
        return words.masked_scatter(mask, features)


class Rows(Placeholders):
    """Whose images are cut into patches."""

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Any = None) -> Any:
        assert len(pixel_values) == image_grid_thw.prod(1).sum()
        return SimpleNamespace(pooler_output=[self.image(pixel_values)])

    def forward(
        self, input_ids: Any = None, pixel_values: Any = None, image_grid_thw: Any = None
    ) -> Tensor:
        return super().forward(input_ids, pixel_values, image_grid_thw)


class Unusual(Placeholders):
    """Whose method returns what features are given ``as_returned``."""

    as_returned: Callable[[Tensor], Any]

    def get_image_features(self, pixel_values: Tensor) -> Any:
        return self.as_returned(self.image(pixel_values).flatten(2).transpose(1, 2))

    def forward(self, input_ids: Any = None, pixel_values: Any = None) -> Tensor:
        words = self.ids(input_ids)
        if pixel_values is None:
            return words
        seen = self.image(pixel_values).flatten(2).transpose(1, 2)
        return self.shown(words, input_ids == self.config.image_token_id, seen)


class Proteins(Configured):
    """Of words and, beside them, texts of another kind, which have an encoder of their own."""

    def forward(
        self,
        input_ids: Any = None,
        protein_input_ids: Any = None,
        protein_attention_mask: Any = None,
    ) -> Tensor:
        words = self.ids(input_ids)
        if protein_input_ids is None or protein_attention_mask is None:
            return words
        return words + self.protein(protein_input_ids).mean(1, keepdim=True)


class Values(Configured):
    """Of an encoder's and a decoder's hidden states."""

    main_input_name = "input_values"

    def forward(self, input_values: Any = None, decoder_input_values: Any = None) -> Tensor:
        return self.encoder(input_values) + self.decoder(decoder_input_values)


class Codec(Configured):
    """Of a sound and its spectrum, one step of which is as long as ``hop_length`` of the sound."""

    main_input_name = "input_values"

    def forward(self, input_values: Tensor, input_features: Tensor) -> Tensor:
        return self.wave(input_values).transpose(1, 2) + self.bins(input_features)


class Masked(Configured):
    """Of spectra and which of their steps are no padding, by another name."""

    main_input_name = "input_features"

    def forward(self, input_features: Tensor, padding_mask: Any = None) -> Tensor:
        return self.bins(input_features) * padding_mask[:, None, 2:]


CONFIGURED: dict[str, Callable[[], nn.Module]] = {
    "patches": lambda: Tower(
        {}, patches=nn.Conv3d(3, 6, (2, 4, 4), stride=(2, 4, 4)), head=nn.Linear(6, 2)
    ),
    "sounds and texts": lambda: SoundsAndTexts(
        {"vocab_size": 30}, ids=nn.Embedding(30, 4), bins=nn.Conv1d(20, 4, 3)
    ),
    "long sounds": lambda: LongSounds(
        {"num_mel_bins": 16, "enable_fusion": True},
        bins=nn.Linear(16, 4),
        pieces=nn.Conv2d(3, 4, 3),
    ),
    "documents": lambda: Documents(
        {"vocab_size": 30, "scale": 100.0}, ids=nn.Embedding(30, 4), boxes=nn.Linear(4, 4)
    ),
    "pages": lambda: Pages(
        {"vocab_size": 30, "input_size": 16}, ids=nn.Embedding(30, 4), image=nn.Conv2d(3, 4, 3)
    ),
    "series": lambda: Series(
        {
            "context_length": 6,
            "prediction_length": 2,
            "lags_sequence": [1, 3],
            "num_time_features": 1,
            "num_dynamic_real_features": 1,
        },
        past=nn.Linear(6, 4),
        times=nn.Linear(2, 4),
    ),
    "pairs": lambda: Pairs({}, image=nn.Conv2d(1, 4, 3)),
    "frames": lambda: Pairs({"num_frames": 8}, image=nn.Conv2d(3, 4, 3)),
    "tasks": lambda: Tasks({}, image=nn.Conv2d(3, 4, 3)),
    "films": lambda: Films(
        {
            "vocab_size": 30,
            "vision_config": SimpleNamespace(image_size=16, num_frames=8),
            "num_frames": 8,
        },
        ids=nn.Embedding(30, 4),
        image=nn.Conv2d(3, 4, 3),
    ),
    "queries": lambda: Queries(
        {"text_config": SimpleNamespace(vocab_size=30), "latent_query_num": 24},
        ids=nn.Embedding(30, 4),
        image=nn.Conv2d(3, 4, 3),
    ),
    "heard": lambda: Heard({"num_mel_bins": 20, "n_window": 25}, bins=nn.Conv1d(20, 4, 3)),
    "placeholders": lambda: Placeholders(
        {"vocab_size": 30, "image_token_id": 5, "audio_token_index": 7, "num_mel_bins": 20},
        ids=nn.Embedding(30, 4),
        image=nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU()),
        bins=nn.Sequential(nn.Conv1d(20, 4, 3), nn.ReLU()),
    ),
    "rows": lambda: Rows(
        {"vocab_size": 30, "image_token_id": 5, "vision_config": SimpleNamespace()},
        ids=nn.Embedding(30, 4),
        image=nn.Sequential(nn.Linear(12, 4), nn.ReLU()),
    ),
    "proteins": lambda: Proteins(
        {"vocab_size": 30, "protein_encoder_config": SimpleNamespace(vocab_size=20)},
        ids=nn.Embedding(30, 4),
        protein=nn.Sequential(nn.Embedding(20, 4), nn.Linear(4, 4)),
    ),
    "values": lambda: Values(
        {"is_encoder_decoder": True}, encoder=nn.Linear(6, 4), decoder=nn.Linear(6, 4)
    ),
    "codec": lambda: Codec(
        {"hop_length": 320, "semantic_model_config": SimpleNamespace(num_mel_bins=20)},
        wave=nn.Conv1d(1, 4, 320, stride=320),
        bins=nn.Linear(20, 4),
    ),
    "masked": lambda: Masked({"num_mel_bins": 20}, bins=nn.Conv1d(20, 4, 3)),
    "channels": lambda: Channels(
        {
            "vocab_size": 30,
            "is_encoder_decoder": True,
            "decoder_config": SimpleNamespace(vocab_size=20, num_channels=9),
        },
        ids=nn.Embedding(30, 4),
        codes=nn.Embedding(20, 4),
    ),
}


def test_texts_alone_where_images_need_more() -> None:
    parts = {"ids": nn.Embedding(30, 4), "image": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())}
    model = Boxed({"text_config": SimpleNamespace(vocab_size=30)}, **parts)
    assert trace(model).unused.keys() == {"image.0.weight", "image.0.bias"}


def unusual(returned: Callable[[Tensor], Any]) -> Unusual:
    parts = {"ids": nn.Embedding(30, 4), "image": nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())}
    model = Unusual({"vocab_size": 30, "image_token_id": 5}, **parts)
    model.as_returned = returned
    return model


def test_features_by_name() -> None:
    assert not trace(unusual(lambda features: {"features": features})).unused


@pytest.mark.parametrize("returned", [lambda features: None, lambda features: "none"])
def test_texts_alone_where_there_are_no_features(returned: Callable[[Tensor], Any]) -> None:
    assert trace(unusual(returned)).unused.keys() == {"image.0.weight", "image.0.bias"}


def test_texts_alone_where_features_are_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = unusual(lambda features: features)
    monkeypatch.setattr(model, "get_image_features", lambda: None)
    assert trace(model).unused.keys() == {"image.0.weight", "image.0.bias"}


def test_images_are_looked_at_without_the_decoder_s_words() -> None:
    model = unusual(lambda features: features)
    model.config.is_encoder_decoder = True
    assert not trace(model).unused


@pytest.mark.parametrize("kind", CONFIGURED)
def test_what_transformers_read_beside_texts_and_images(kind: str) -> None:
    assert not trace(CONFIGURED[kind]()).unused
