"""SAM2's weights as the ``transformers`` package names them: ``model.safetensors`` on the hub.

The tensors of its ``Sam2VideoModel`` are Meta's under other names, with two exceptions: what Meta
has for each of four kinds of points are the rows of one tensor, and the positional embedding that
prompts and images share may be there twice.
"""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

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
    """Whether the names of some weights are those of transformers' SAM2."""
    return any(name.startswith("vision_encoder.") for name in state)


def to_meta(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Weights of transformers' SAM2 under Meta's names.

    Args:
        state: by the names of transformers.
        names: Meta's, of all tensors of the network.

    Returns:
        What ``state`` has of them, and under its own name whatever it has besides.
    """
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
    """What transformers calls the tensor of this name of Meta's."""
    for pattern, replacement in RULES:
        name = pattern.sub(replacement, name)
    return name
