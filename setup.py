"""The native extension of data_prep; everything else of the package is in setup.cfg."""

from glob import glob

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "data_prep._native",
            ["data_prep/native/module.cpp"],
            depends=glob("data_prep/native/*.hpp"),
            cxx_std=17,
            extra_compile_args=["-O3"],
        )
    ]
)
