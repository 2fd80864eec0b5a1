"""Which isorend this is."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """The version that is installed; "unknown" if none is."""
    try:
        return version("isorend")
    except PackageNotFoundError:
        return "unknown"
