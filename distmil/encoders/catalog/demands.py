"""What an encoder asks of the user and of the machine, checked without torch."""

from importlib.util import find_spec

from distmil.encoders.catalog.row import EncoderRow
from distmil.errors import ConfigError


def check_demands(row: EncoderRow, *, allow_remote_code: bool) -> None:
    """Refuse an encoder whose code comes from a hub where that is not allowed, or cannot run.

    Raises:
        ConfigError: If it may not run, or the package transformers is not installed.
    """
    if row.source != "remote":
        return
    if not allow_remote_code:
        raise ConfigError(
            f"encoder.name = {row.name!r}: this encoder is code in the repository {row.hub} that would run on your "
            "machines; read it, and then set encoder.allow_remote_code=true, or choose an encoder that needs none"
        )
    if find_spec("transformers") is None:
        raise ConfigError(
            f"encoder.name = {row.name!r} needs the package transformers, which is not installed here: "
            "pip install 'distmil[encoders]', on every node"
        )
