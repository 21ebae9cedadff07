"""The one error that a user can cause: what was expected, what was found, and the remedy."""


class InputError(ValueError):
    """A file, a registry, a setting or a request that cannot be used as it is.

    The command line prints the message as one line and exits 2; libraries see an ordinary ``ValueError``.

    >>> str(InputError("label must be 0 or 1", found="2 in row 7", remedy="map the label first"))
    'label must be 0 or 1; found 2 in row 7; map the label first'
    """

    def __init__(self, expected: str, *, found: str | None = None, remedy: str | None = None) -> None:
        parts = [expected] + ([f"found {found}"] if found is not None else []) + ([remedy] if remedy else [])
        super().__init__("; ".join(parts))
