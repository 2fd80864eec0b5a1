"""Not a target: a bug that no blind luck finds, to show that the fuzzer of Python code is led by what it reaches."""

from tests.fuzz.python.choices import Choices


def run(data: bytes) -> None:
    choices = Choices(data)
    if choices.byte() != 0x17:
        return
    if choices.byte() != 0x2A:
        return
    if choices.byte() == 0x63:
        raise RuntimeError("the canary sings")
