"""``python -m fsmis export``: weights of the ``sam2`` engine as a folder that transformers opens.

The folder holds ``config.json``, ``model.safetensors`` and the settings of a processor, for
``Sam2VideoModel.from_pretrained`` and ``Sam2VideoProcessor.from_pretrained``, and for
``segmenter=transformers_sam2.1_tiny segmenter.checkpoint=FOLDER``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig

from fsmis.cli import command_line
from fsmis.errors import UserError
from fsmis.segmenters.checkpoints import to_transformers
from fsmis.segmenters.sam2 import Sam2
from fsmis.segmenters.transformers_loading import import_transformers
from fsmis.settings import composing


def export(segmenter: Sam2, out: Path) -> None:
    """Write a model of SAM2's architecture as transformers reads it.

    Args:
        segmenter: the model, on any device.
        out: folder to write, made if need be.

    Raises:
        UserError: transformers is not installed, cannot express the architecture, or the folder
            cannot be written.
    """
    transformers = import_transformers()
    side = segmenter.image_size
    quarter = {"height": side // 4, "width": side // 4}
    model = transformers.Sam2VideoModel(
        transformers.Sam2VideoConfig(**config_of(segmenter.architecture, side))
    )
    state = to_transformers(segmenter.model.state_dict())
    own = model.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    wrong += [name for name in state if name not in own]
    if wrong:
        raise UserError(
            f"transformers has no such architecture: {len(wrong)} tensors differ, the first is "
            f"{wrong[0]}; choose a segmenter of SAM2's or SAM2.1's own layout"
        )
    model.load_state_dict(state)
    pixels = {
        "size": {"height": side, "width": side},
        "image_mean": segmenter.mean.flatten().tolist(),
        "image_std": segmenter.std.flatten().tolist(),
    }
    processor = transformers.Sam2VideoProcessor(
        transformers.Sam2ImageProcessor(**pixels, mask_size=quarter),
        transformers.Sam2VideoVideoProcessor(**pixels),
        target_size=side,
    )
    try:
        model.save_pretrained(out)
        processor.save_pretrained(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another") from error


def config_of(architecture: DictConfig, side: int) -> dict[str, Any]:
    """What ``Sam2VideoConfig`` takes for a model of the ``sam2`` package.

    Args:
        architecture: see :func:`fsmis.segmenters.sam2.read_architecture`.
        side: of the images in pixels.
    """
    trunk, neck = architecture.image_encoder.trunk, architecture.image_encoder.neck
    attention, encoder = architecture.memory_attention, architecture.memory_encoder
    cross, downsampler, fuser = (
        attention.layer.cross_attention,
        encoder.mask_downsampler,
        encoder.fuser,
    )
    width, heads = trunk.embed_dim, trunk.num_heads
    hidden = neck.d_model
    decoder = architecture.get("sam_mask_decoder_extra_args") or {}
    given = {
        "dynamic_multimask_via_stability": False,
        **{key: value for key, value in decoder.items() if key.startswith("dynamic_multimask")},
    }
    cells = side // 16
    return {
        "image_size": side,
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "image_size": [side, side],
                "hidden_size": width,
                "num_attention_heads": heads,
                # the defaults are those of sam2.modeling.backbones.hieradet.Hiera
                "blocks_per_stage": list(trunk.get("stages", [2, 3, 16, 3])),
                "embed_dim_per_stage": [width * 2**stage for stage in range(4)],
                "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
                "window_size_per_stage": list(trunk.get("window_spec", [8, 4, 14, 7])),
                "global_attention_blocks": list(trunk.get("global_att_blocks", [12, 16, 20])),
                "window_positional_embedding_background_size": list(
                    trunk.get("window_pos_embed_bkg_spatial_size", [14, 14])
                ),
            },
            "backbone_channel_list": list(neck.backbone_channel_list),
            "backbone_feature_sizes": [[scale * cells] * 2 for scale in (4, 2, 1)],
            "fpn_hidden_size": hidden,
            "fpn_top_down_levels": list(neck.fpn_top_down_levels),
        },
        "prompt_encoder_config": {"hidden_size": hidden, "image_size": side},
        "mask_decoder_config": {"hidden_size": hidden, **given},
        "num_maskmem": architecture.num_maskmem,
        "sigmoid_scale_for_mem_enc": architecture.sigmoid_scale_for_mem_enc,
        "sigmoid_bias_for_mem_enc": architecture.sigmoid_bias_for_mem_enc,
        # of SAM2.1 alone
        "enable_occlusion_spatial_embedding": architecture.get("no_obj_embed_spatial", False),
        "enable_temporal_pos_encoding_for_object_pointers": architecture.get(
            "proj_tpos_enc_in_obj_ptrs", False
        ),
        "multimask_output_in_sam": architecture.get("multimask_output_in_sam", False),
        "multimask_output_for_tracking": architecture.get("multimask_output_for_tracking", False),
        "multimask_min_pt_num": architecture.get("multimask_min_pt_num", 1),
        "multimask_max_pt_num": architecture.get("multimask_max_pt_num", 1),
        "memory_attention_hidden_size": hidden,
        "memory_attention_num_layers": attention.num_layers,
        "memory_attention_num_attention_heads": cross.num_heads,
        "memory_attention_downsample_rate": cross.downsample_rate,
        "memory_attention_feed_forward_hidden_size": attention.layer.dim_feedforward,
        "memory_attention_feed_forward_hidden_act": attention.layer.activation,
        "memory_attention_rope_feat_sizes": [cells, cells],
        "memory_encoder_hidden_size": hidden,
        "memory_encoder_output_channels": encoder.out_dim,
        "mask_downsampler_embed_dim": downsampler.get("embed_dim", 256),
        "memory_fuser_num_layers": fuser.num_layers,
        "memory_fuser_embed_dim": fuser.layer.dim,
        "memory_fuser_intermediate_dim": 4 * fuser.layer.dim,
        "memory_fuser_kernel_size": fuser.layer.kernel_size,
        "memory_fuser_padding": fuser.layer.padding,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; exit code 2 with one line on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m fsmis export",
        description="Write SAM2's weights as a folder that Sam2VideoModel of transformers opens.",
    )
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="settings of the segmenter, such as segmenter=sam2.1_tiny (default: sam2_mini)",
    )
    options = parser.parse_args(arguments)
    with command_line():
        try:
            with composing():
                config = compose("config", overrides=["device=cpu", *options.overrides])
        except HydraException as error:
            raise UserError(str(error).split("\n")[0]) from error
        segmenter = instantiate(config.segmenter, cache=None)
        if not isinstance(segmenter, Sam2):
            raise UserError(
                f"{config.segmenter._target_} is of transformers, or not of SAM2's architecture; "
                "choose a segmenter of the sam2 engine, such as segmenter=sam2_mini"
            )
        export(segmenter, options.out)
    print(f"{options.out}: Sam2VideoModel, {segmenter.image_size} px")


if __name__ == "__main__":
    main()
