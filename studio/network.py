"""Whether a fault of the hub may pass by itself. Its library raises dozens of kinds."""

TRANSPORT = {"TransportError", "OfflineModeIsEnabled", "LocalEntryNotFoundError"}


def may_pass(error: BaseException) -> bool:
    """Whether nobody answered, or somebody had too much to do: the same may work later."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "LocalEntryNotFoundError" in kinds and error.__cause__ is not None:
        return may_pass(error.__cause__)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status in (408, 429) or status >= 500
    if isinstance(error, ConnectionError | TimeoutError) or kinds & TRANSPORT:
        return True
    return type(error) is OSError and error.errno is None  # what arrived was not whole
