"""Helpers to write TGSI shaders: comments, and the few idioms that every lit shader repeats.

TGSI is gallium's assembly, whose text form is what virgl guests send (Mesa's "TGSI" documentation).
"""

from string import Template


def assemble(text: str, **registers: str) -> str:
    """TGSI text from ``text``: ``# comments`` and blank lines dropped, ``$name`` replaced by its register."""
    lines = (line.split("#", 1)[0].strip() for line in Template(text).substitute(registers).splitlines())
    return "\n".join(line for line in lines if line) + "\n"


def normalize(destination: str, source: str) -> str:
    """``destination.xyz`` = normalised ``source.xyz``; uses destination.w."""
    return f"""
        DP3 {destination}.w, {source}, {source}
        RSQ {destination}.w, {destination}.wwww
        MUL {destination}.xyz, {source}, {destination}.wwww
    """


def square(register: str, times: int) -> str:
    """``register``, one component, squared ``times`` times over: a cheap power for highlights."""
    name, component = register.rsplit(".", 1)
    source = f"{name}.{component * 4}"
    return "\n".join([f"MUL {register}, {source}, {source}"] * times)


def transform(destination: str, source: str, first_row: int) -> str:
    """``destination`` = matrix in CONST[first_row..+3] times ``source``."""
    return "\n".join(
        f"DP4 {destination}.{component}, {source}, CONST[{first_row + row}]" for row, component in enumerate("xyzw")
    )


def dither(color: str, position: str, scratch: str) -> str:
    """Add noise of about half an 8-bit step to ``color.xyz``, by pixel position, so that soft gradients show no bands.

    Needs DITHER_IMMEDIATES, which are IMM[0] and IMM[1]; immediates are declared in order.
    """
    return f"""
        DP2 {scratch}.x, {position}, IMM[1]
        SIN {scratch}.x, {scratch}.xxxx
        MUL {scratch}.x, {scratch}.xxxx, IMM[1].zzzz
        FRC {scratch}.x, {scratch}.xxxx
        ADD {scratch}.x, {scratch}.xxxx, IMM[0].xxxx
        MAD {color}.xyz, {scratch}.xxxx, IMM[1].wwww, {color}
    """


DITHER_IMMEDIATES = """
    IMM[0] FLT32 { -0.5, 0.0, 0.0, 0.0 }
    IMM[1] FLT32 { 12.9898, 78.233, 43758.5453, 0.0055 }
"""
