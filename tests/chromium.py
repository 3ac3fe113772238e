"""Headless Chromium for the tests that look at a page as a person does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

from levada.cluster import Console, packages
from levada.cluster.errors import ClusterError


@contextmanager
def running(profile: Path, *arguments: str, logs: Mapping[str, str] | None = None) -> Iterator[Chrome]:
    """Debian's Chromium and its driver, installed where they are missing and that is allowed; else the test is skipped.

    Args:
        profile: a folder of its own.
        arguments: more of Chromium's options, without their dashes.
        logs: kind of log → level, of those that the browser shall keep.
    """
    try:
        packages.ensure(("chromium", "chromium-driver", "fonts-dejavu-core"), Console())
    except (ClusterError, OSError) as error:
        pytest.skip(f"no Chromium: {error}")
    options = ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in ("headless=new", "disable-dev-shm-usage", f"user-data-dir={profile}", *arguments):
        options.add_argument(f"--{argument}")
    if os.geteuid() == 0:  # Chromium's sandbox is not for root
        options.add_argument("--no-sandbox")
    if logs is not None:
        options.set_capability("goog:loggingPrefs", dict(logs))
    browser = Chrome(options, ChromeService("/usr/bin/chromedriver"))
    browser.set_page_load_timeout(30)
    yield browser
    browser.quit()
