"""The packages of lmjax, and its recipes: experiments/ is lmjax.experiments where lmjax is installed."""

from setuptools import find_packages, setup

RECIPES = "lmjax.experiments"

setup(packages=[*find_packages(include=["lmjax*"]), RECIPES], package_dir={RECIPES: "experiments"})
