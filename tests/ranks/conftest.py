import pytest
from rank_pair import Pair


@pytest.fixture(scope="session")
def pair():
    """Two joined processes; to start them takes longer than most of what they are asked."""
    processes = Pair()
    yield processes
    processes.end()
