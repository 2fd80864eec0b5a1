"""What pyproject.toml cannot say: the native modules, which cffi's hook into setuptools builds."""

from setuptools import setup

setup(cffi_modules=["native/build_dataplane.py:ffibuilder", "native/build_engines.py:ffibuilder"])
