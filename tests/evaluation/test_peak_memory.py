"""Memory counted on tensors without data."""

import torch

from ldseg_auto.evaluation.peak_memory import peak_bytes


def test_what_lives_at_the_same_time_is_added_up():
    def prepare():
        network = torch.nn.Linear(1000, 1000, bias=False)

        def step():
            with torch.no_grad():
                first = torch.zeros(1000, 1000) + 1
                second = first + 1
                del first
                third = second + 1
                del second, third

        return step, [network]

    # the weights and two arrays of a million values; torch rounds up, and a sum holds no third array
    assert 12e6 <= peak_bytes(prepare) < 12.1e6


def test_lists_of_tensors_and_moments_count():
    def prepare(average: bool, optimise: bool):
        network = torch.nn.Linear(1000, 1000, bias=False)
        known = [network]
        if average:
            known.append([torch.zeros(1000, 1000)])
        if optimise:
            known.append(torch.optim.AdamW(network.parameters()))
        return lambda: None, known

    sizes = [peak_bytes(lambda a=a, o=o: prepare(a, o)) / 4e6 for a, o in ((False, False), (True, False), (True, True))]
    assert [round(size, 2) for size in sizes] == [1, 2, 4]
