"""What can be wrong with something on disk or with what is asked of it. Each is an answer of the
admin API as well, and names the command that mends it."""

from __future__ import annotations

from hxd.errors import CallerError, StorageFailed


class StoreError(CallerError):
    """What was asked can't be done to the store as it is."""

    code = "store_refused"


class BadName(StoreError):
    """A name, version, label, digest or path that the store does not take."""

    code = "bad_reference"


class NotThere(StoreError):
    """Nothing of this name, version, label or variant is in the store."""

    status = 404
    code = "not_in_store"


class Conflict(StoreError):
    """It is there already, or in use."""

    status = 409
    code = "store_conflict"


class SameContent(Conflict):
    """Not needed: version `number` of `name` has the same bytes, and may be loaded."""

    def __init__(self, message: str, name: str, number: int) -> None:
        super().__init__(message)
        self.name, self.number = name, number


class Corrupt(StoreError):
    """Bytes are not the ones that the manifest lists, or not a file of the kind they claim."""

    status = 422
    code = "corrupt_file"


class SourceFailed(StoreError):
    """Another server did not give what was asked of it."""

    status = 502
    code = "source_failed"


class Cancelled(StoreError):
    status = 409
    code = "cancelled"


class StoreBroken(StorageFailed):
    """Of the store; nothing was changed."""
