"""Work and memory, added up as sizes come and go."""

from math import prod

from kinema.runtime.ledger import COUNT_FLOPS, Ledger, Work


def test_a_size_is_held_as_long_as_it_is_named():
    ledger = Ledger()
    first = ledger.new(10, item=4)
    second = ledger.each(first)
    assert (ledger.live, ledger.peak) == (80, 80)
    del first
    assert (ledger.live, ledger.peak) == (40, 80)
    del second
    assert ledger.live == 0


def test_repeated_work_counts_so_often_and_holds_memory_once():
    ledger = Ledger()
    x = ledger.new(2, 3, item=4)
    with ledger.repeat(2), ledger.repeat(5):
        ledger.linear(x, 4)
    assert ledger.work[Work("product", 4, 48, 48)] == 10
    assert ledger.peak == x.bytes + 2 * 4 * 4


def test_every_kind_of_work_that_counts_flops_says_so():
    ledger = Ledger()
    for kind in COUNT_FLOPS:
        ledger.spend(kind, 4, 7)
    ledger.spend("elementwise", 4, 7)
    assert sum(one.flops * times for one, times in ledger.work.items()) == 7 * len(COUNT_FLOPS)


def test_sizes_agree_on_elements():
    ledger = Ledger()
    x = ledger.new(2, 3, 5, item=2)
    assert (x.count, x.bytes) == (prod((2, 3, 5)), 60)
