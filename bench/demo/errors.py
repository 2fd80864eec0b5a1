"""What ends a demo early."""


class DemoFailed(Exception):
    """Something that the demo is there to show did not happen; the message is one line for a person."""
