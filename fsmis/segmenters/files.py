"""Files a segmenter names: given by path, shipped beside this code, or on the Hugging Face hub."""

from pathlib import Path

from fsmis.errors import UserError

SHIPPED = Path(__file__).parent

# Checkpoint file of each hub repository, as the sam2 package names them.
HUB_FILES = {
    f"facebook/{version}-hiera-{size.replace('_', '-')}": f"{version}_hiera_{size}.pt"
    for version in ("sam2", "sam2.1")
    for size in ("tiny", "small", "base_plus", "large")
}


def find_checkpoint(checkpoint: str) -> Path:
    """The local file of a checkpoint; one named by its hub id is downloaded once and cached.

    Raises:
        UserError: no such file, or the hub cannot be reached.
    """
    for path in (Path(checkpoint).expanduser(), SHIPPED / checkpoint):
        if path.is_file():
            return path
    if checkpoint not in HUB_FILES:
        raise UserError(
            f"segmenter.checkpoint={checkpoint} is neither a file nor a known hub id; give the "
            f"path of a checkpoint or one of {', '.join(HUB_FILES)}"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name = HUB_FILES[checkpoint]
    try:
        return Path(hf_hub_download(checkpoint, name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name} of {checkpoint} is not cached and the Hugging Face hub cannot be reached; "
            f"download it elsewhere and pass segmenter.checkpoint=/path/to/{name}, or use "
            "segmenter=sam2_mini, which needs no download"
        ) from error
