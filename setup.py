"""What pyproject.toml cannot say: the native modules, which cffi's hook into setuptools builds."""

from setuptools import setup

BUILDERS = ("native/build_dataplane.py", "native/build_engines.py", "native/build_sandbox.py")

setup(cffi_modules=[f"{builder}:ffibuilder" for builder in BUILDERS])
