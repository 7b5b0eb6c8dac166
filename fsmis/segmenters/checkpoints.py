"""Files of weights, read with nothing unpickled, and loaded into a network strictly, as Meta or
transformers publish them. Torch is loaded only by what reads one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsmis.errors import UserError
from fsmis.files import sha256

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def read_tensors(path: Path) -> dict[str, Any]:
    """Contents, on the CPU, of a ``.safetensors`` file or one that ``torch.save`` wrote.

    Nothing but tensors and plain containers is unpickled (``weights_only=True``). Raises UserError
    for a Git LFS pointer, a web page, a truncated file, or other contents.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes of some other file lead a parser to
        raise UserError(f"{path} {_what_it_is(path)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds a {type(loaded).__name__}, not a dictionary of tensors")
    return loaded


def read_state(path: Path) -> dict[str, Tensor]:
    """The weights of a network by name, taken from ``model`` where Meta's files keep them.

    Raises UserError as ``read_tensors``, or where there is anything but tensors.
    """
    from torch import Tensor

    loaded = read_tensors(path)
    state = loaded.get("model", loaded)
    if not isinstance(state, dict) or not state:
        raise UserError(f"{path} holds no weights of a network by name; give a checkpoint")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path} holds {name!r}, a {type(value).__name__}, where the weights of a network "
                "are tensors by name; give a checkpoint of the weights alone"
            )
    return state


def _what_it_is(path: Path) -> str:
    try:
        with path.open("rb") as file:
            start = file.read(64).lstrip().lower()
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not weights: run `git lfs pull` there"
    if start.startswith((b"<!doctype", b"<html")):
        return "is an HTML page, not weights: download it again"
    return (
        f"({path.stat().st_size} bytes) is not a checkpoint of tensors alone: expected a "
        ".safetensors file, or one that torch.save wrote; check the path or download it again"
    )


def load_weights(model: torch.nn.Module, checkpoint: str, expected_sha256: str | None) -> None:
    """Load a checkpoint into SAM2's network, every tensor of it and no other.

    ``checkpoint`` (see ``find_checkpoint``) is a file of Meta's (``.pt``, the weights at the top or
    under ``model``), one of this project, or ``model.safetensors`` of transformers. Raises
    UserError where it is missing, no checkpoint, of another architecture, or has not the expected
    SHA-256.
    """
    path = find_checkpoint(checkpoint)
    if expected_sha256 and sha256(path) != expected_sha256:
        raise UserError(
            f"{path} has SHA-256 {sha256(path)}, expected {expected_sha256}: download it again, or "
            "set segmenter.sha256=null to use it as it is"
        )
    state = read_state(path)
    own = model.state_dict()
    if is_of_transformers(state):
        state = to_meta(state, own)
    wrong = [key for key in own if key not in state or state[key].shape != own[key].shape]
    wrong += [key for key in state if key not in own]
    if wrong:
        raise UserError(
            f"{path} does not fit segmenter.architecture: {len(wrong)} tensors differ, the first "
            f"is {wrong[0]}; choose the segmenter of the checkpoint's own size and version"
        )
    model.load_state_dict(state)


SHIPPED = Path(__file__).parent / "mini"

# Checkpoint file of each hub repository, in the sam2 package's own form; of one that has several,
# the others by their names below it.
HUB_FILES = {
    f"facebook/{version}-hiera-{size.replace('_', '-')}": f"{version}_hiera_{size}.pt"
    for version in ("sam2", "sam2.1")
    for size in ("tiny", "small", "base_plus", "large")
}
HUB_FILES["wanglab/MedSAM2"] = "MedSAM2_latest.pt"
HUB_FILES |= {
    f"wanglab/MedSAM2/{name}": name
    for name in (f"MedSAM2_{of}.pt" for of in ("2411", "CTLesion", "MRI_LiverLesion", "US_Heart"))
}


def repository(checkpoint: str) -> str:
    """The hub repository of a checkpoint that is one of several there."""
    return "/".join(checkpoint.split("/")[:2])


def local_files(checkpoint: str) -> list[Path]:
    """The file of a checkpoint given by path or shipped, or the two of a folder that transformers
    opens; empty where it is neither."""
    given = Path(checkpoint).expanduser()
    folder = [given / "config.json", given / "model.safetensors"]
    places = [[given], [SHIPPED / checkpoint], folder]
    return next((place for place in places if all(path.is_file() for path in place)), [])


def find_checkpoint(checkpoint: str) -> Path:
    """The local file of a checkpoint; one named by its hub id is downloaded once and cached.

    Raises UserError where there is no such file or the hub cannot be reached.
    """
    if len(found := local_files(checkpoint)) == 1:
        return found[0]
    if checkpoint not in HUB_FILES:
        raise UserError(
            f"segmenter.checkpoint={checkpoint} is neither a file nor a known hub id; give the "
            f"path of a checkpoint or one of {', '.join(HUB_FILES)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = HUB_FILES[checkpoint]
    try:
        return Path(hf_hub_download(repository(checkpoint), name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name} of {checkpoint} is not cached and the Hugging Face hub cannot be reached; "
            f"download it elsewhere and pass segmenter.checkpoint=/path/to/{name}, or use "
            "segmenter=sam2_mini, which needs no download"
        ) from error


IMAGE_EMBEDDING = "shared_image_embedding.positional_embedding"
PROMPT_EMBEDDING = "prompt_encoder.shared_embedding.positional_embedding"
POINTS = "prompt_encoder.point_embed.weight"
POINT = re.compile(r"sam_prompt_encoder\.point_embeddings\.(\d)\.weight")

# From a name of Meta's to that of transformers: rules in turn, each on what those before it left.
RULES = [
    (re.compile(pattern), name)
    for pattern, name in (
        # heads of three linear layers
        (r"(obj_ptr_proj|_head|_mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
        (r"(obj_ptr_proj|_head|_mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
        (r"(obj_ptr_proj|_head|_mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
        # two in the blocks of transformers
        (r"\.mlp\.layers\.0\.", ".mlp.proj_in."),
        (r"\.mlp\.layers\.1\.", ".mlp.proj_out."),
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.norm", ".layer_norm"),
        # image encoder
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
        (r"^image_encoder\.neck\.convs\.(\d)\.conv\.", r"vision_encoder.neck.convs.\1."),
        # prompt encoder and mask decoder
        (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", IMAGE_EMBEDDING),
        (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
        (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
        (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
        (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
        (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
        (r"\.output_upscaling\.0\.", ".upscale_conv1."),
        (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
        (r"\.output_upscaling\.3\.", ".upscale_conv2."),
        # memory encoder
        (r"\.pix_feat_proj\.", ".feature_projection."),
        (r"\.mask_downsampler\.encoder\.12\.", ".mask_downsampler.final_conv."),
        *(
            (rf"\.mask_downsampler\.encoder\.{3 * layer + part}\.", f".mask_downsampler.{name}.")
            for layer in range(4)
            for part, name in enumerate((f"layers.{layer}.conv", f"layers.{layer}.layer_norm"))
        ),
        (r"\.fuser\.", ".memory_fuser."),
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
        (r"\.gamma$", ".scale"),
        # single tensors
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        (r"^obj_ptr_proj\.", "object_pointer_proj."),
    )
]


def is_of_transformers(state: Iterable[str]) -> bool:
    return any(name.startswith("vision_encoder.") for name in state)


def to_meta(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights of transformers' SAM2 under Meta's ``names`` (of all tensors of the network).

    Anything else in ``state`` keeps its name.
    """
    import torch

    left = dict(state)
    image, prompt = left.get(IMAGE_EMBEDDING), left.get(PROMPT_EMBEDDING)
    if image is None and prompt is not None:
        left[IMAGE_EMBEDDING] = left.pop(PROMPT_EMBEDDING)
    elif image is not None and prompt is not None and torch.equal(image, prompt):
        del left[PROMPT_EMBEDDING]
    points = [name for name in names if POINT.fullmatch(name)]
    renamed = {}
    if POINTS in left and len(left[POINTS]) == len(points):
        rows = left.pop(POINTS).split(1)
        renamed = {name: rows[int(name.split(".")[-2])] for name in points}
    for name in names:
        if (other := in_transformers(name)) in left:
            renamed[name] = left.pop(other)
    return renamed | left


def in_transformers(name: str) -> str:
    for pattern, replacement in RULES:
        name = pattern.sub(replacement, name)
    return name


def to_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of Meta's SAM2 under the names of transformers; the inverse of :func:`to_meta`."""
    import torch

    points = sorted(name for name in state if POINT.fullmatch(name))
    rest = {in_transformers(name): state[name] for name in state if name not in points}
    shared = rest[IMAGE_EMBEDDING].clone()  # each module keeps its own
    return rest | {POINTS: torch.cat([state[name] for name in points]), PROMPT_EMBEDDING: shared}
