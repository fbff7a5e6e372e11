"""Start a larger CAAN from a smaller, trained one (`jobs.train --init`)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from caan.errors import InputError
from caan.models.caan import CAAN
from caan.models.head import Head


def grow_from(
    head: Head, source: Head, *, label_set: Sequence[str], source_label_set: Sequence[str]
) -> None:
    """Copy the weights of `source` into `head`, in place, so that both predict the same at first.

    `source` uses faces only, or the same modalities as `head`. Its units become the first units of
    each layer of `head`. They get no input from the additional units, which start at random. The
    fusion layer passes the face feature through. Emotions are matched by name; an emotion that
    `source` does not have starts at random.

    Raises:
        InputError: one of the two is no CAAN, or `head` is too small or has other options.

    Source: our choice, after Chen, Goodfellow and Shlens 2016, "Net2Net".
    """
    if not (isinstance(head, CAAN) and isinstance(source, CAAN)):
        raise InputError("option `init` starts a model `caan` from another model `caan` only")
    if not set(source.modalities) <= set(head.modalities):
        raise InputError(
            f"option `init` names a model of {' and '.join(source.modalities)}, and "
            f"`model.modality` leaves that out"
        )
    for name in ("score_fn", "score_input"):
        if getattr(head, name) != getattr(source, name):
            raise InputError(
                f"option `model.{name}` is {getattr(head, name)}, that of the model of `init` is "
                f"{getattr(source, name)}: they must be the same"
            )
    passed_on = "fusion.layer.weight"
    state = head.state_dict()
    old = source.state_dict()
    with torch.no_grad():
        for name, tensor in old.items():
            if name not in state:
                raise InputError(f"option `init`: this model has no layer `{name}`")
            if name.startswith("classifier."):
                _copy_emotions(state[name], tensor, label_set, source_label_set)
                continue
            if name == passed_on and state[name].shape != tensor.shape:
                raise InputError("option `init` from a fusion model needs its very sizes")
            if any(new < own for new, own in zip(state[name].shape, tensor.shape, strict=True)):
                raise InputError(
                    f"option `init`: layer `{name}` is {tuple(state[name].shape)} and must be at "
                    f"least {tuple(tensor.shape)}: choose larger sizes and the same depth"
                )
            _put(state[name], tensor)
        if len(head.modalities) > len(source.modalities):
            if head.fusion.kind != "concat_fc":
                raise InputError("option `init` from a face model needs `model.fusion` concat_fc")
            size = source.project_face.out_features
            if len(state[passed_on]) < size:
                raise InputError(f"option `init`: `model.fusion_size` must be at least {size}")
            # Their inputs come from a ReLU, so the ReLU after this layer changes nothing.
            _put(state[passed_on], torch.eye(size))
            state["fusion.layer.bias"][:size] = 0
    for modality in source.modalities:
        getattr(head, f"standardize_{modality}").is_fixed = True


def _put(whole: Tensor, part: Tensor) -> None:
    """Copy `part` into the first rows and columns; zero the rest of these rows."""
    if whole.dim() == 2:
        rows, columns = part.shape
        whole[:rows, columns:] = 0
        whole[:rows, :columns] = part
    else:
        whole[: len(part)] = part


def _copy_emotions(
    whole: Tensor, part: Tensor, label_set: Sequence[str], source_label_set: Sequence[str]
) -> None:
    for row, emotion in enumerate(label_set):
        if emotion in source_label_set:
            number = list(source_label_set).index(emotion)
            _put(whole[row : row + 1], part[number : number + 1])
