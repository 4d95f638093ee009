"""Tests that start programs. pytest has the name of the test that runs in PYTEST_CURRENT_TEST, and programs inherit it:

    memleak run --label-env PYTEST_CURRENT_TEST --fail-on-lost 0 --gate-exe './**' -o junit=leaks.xml -- pytest

A case of leaks.xml is then a test, and not a program.
"""

import os
import subprocess

HERE = os.path.dirname(os.path.abspath(__file__))


def test_tidy():
    subprocess.run([os.path.join(HERE, "tidy")], check=True)


def test_messy():
    subprocess.run([os.path.join(HERE, "messy")], check=True)
