"""Models of Hugging Face's ``transformers`` at any image size: from a checkpoint, or random."""

from typing import Any

from fsmis.errors import UserError

# What the side of an image must be a multiple of. Hiera divides it by 32; EdgeTAM's memory has 16
# windows of cells of 16 pixels a side; SAM 3's patches have 14 pixels a side.
MULTIPLES = {"Sam2Video": 32, "EdgeTamVideo": 256, "Sam3TrackerVideo": 14}
INSTALL = 'pip install -c constraints.txt -e ".[transformers]"'


def build(model: str, checkpoint: str, image_size: int, architecture: dict[str, Any]) -> Any:
    """A video model of transformers that sees images of one size.

    Args:
        model: one of ``MULTIPLES``.
        checkpoint: see :class:`~fsmis.segmenters.transformers_models.TransformersModel`.
        image_size: side in pixels.
        architecture: of random weights, what the config class of transformers takes.

    Raises:
        UserError: transformers is not installed, or the checkpoint is missing or of another model.
    """
    transformers = import_transformers()
    config_class = getattr(transformers, f"{model}Config")
    model_class = getattr(transformers, f"{model}Model")
    if checkpoint == "random":
        return model_class(sized(config_class(**architecture), image_size))
    try:
        config = config_class.from_pretrained(checkpoint)
        # facebook/sam3 holds the tracker beside a detector
        config = getattr(config, "tracker_config", None) or config
        network, read = model_class.from_pretrained(
            checkpoint,
            config=sized(config, image_size),
            dtype="float32",
            use_safetensors=True,  # nothing is unpickled
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"segmenter.checkpoint={checkpoint} cannot be read ({reason}); give a folder with the "
            "config.json and model.safetensors of the model, or its hub id while online"
        ) from error
    wrong = sorted(map(str, (*read["missing_keys"], *read["unexpected_keys"])))
    if wrong:
        raise UserError(
            f"segmenter.checkpoint={checkpoint} is not of segmenter.model={model}: {len(wrong)} "
            f"tensors differ, the first is {wrong[0]}"
        )
    return network


def import_transformers() -> Any:
    """The package, quiet; loading it takes seconds that not all runs need.

    Raises:
        UserError: it is not installed, or EdgeTAM's ``timm`` is not.
    """
    try:
        import timm  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed: {INSTALL}") from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def sized(config: Any, image_size: int) -> Any:
    """The configuration for images of ``image_size`` pixels a side.

    Weights do not depend on that; sizes of feature maps that several modules keep do.
    """
    new = config.to_dict()
    vision, prompt = new["vision_config"], new["prompt_encoder_config"]
    side = image_size // prompt["patch_size"]
    new["image_size"] = prompt["image_size"] = image_size
    vision["backbone_feature_sizes"] = [[scale * side] * 2 for scale in (4, 2, 1)]
    new["memory_attention_rope_feat_sizes"] = [side, side]
    backbone = vision["backbone_config"]
    if "image_size" in backbone:
        backbone["image_size"] = image_size
    return type(config).from_dict(new)
