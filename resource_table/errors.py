"""Why the table cannot do what it is asked."""


class TableError(Exception):
    """A request to the table that cannot be met."""


class UnknownResource(TableError):
    """No resource has this id."""


class DuplicateResource(TableError):
    """The id is in use, or is 0."""


class InvalidResource(TableError):
    """Nothing could be made with these arguments."""


class OutOfMemory(TableError):
    """More resources, or more memory for them, than a guest may have."""
