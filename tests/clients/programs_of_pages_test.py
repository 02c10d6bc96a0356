"""The programs of pages that need other libraries run as pasted."""

import pages
import pytest


@pytest.mark.parametrize("name", sorted(pages.ELSEWHERE))
def test_the_programs_of_a_page_run_as_pasted(name):
    names = {"__name__": "__main__"}
    for block in pages.blocks(pages.ROOT / name):
        pages.paste(block, names)
