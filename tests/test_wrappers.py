"""Denoisers around denoisers: what a wrapper passes on of what is inside, the library's or somebody's own."""

from __future__ import annotations

import warnings
from collections import UserDict
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType

import pytest
import torch

import fewstep as fs
from fewstep.denoiser.base import Denoiser, as_denoiser, fingerprint, layers, leaves, mapped, of_samples
from fewstep.loop.plan import on_raw_outputs
from fewstep.loop.tabulate import about

VP, EDM = fs.VP(), fs.EDM()
MEANS = torch.tensor([[-1.0, 0.5], [0.8, -0.2], [0.1, 1.2]])
RUN = {"shape": (3, 2), "steps": 4, "dtype": torch.float64, "progress": False}


def oracle(process=VP, shift=0.0):
    return fs.Mixture(process, MEANS + shift, 0.4)


def network(weights="a" * 64, predicts="noise", **options):
    net = lambda x, t: torch.tanh(x) * (1 - t.reshape(-1, *(1,) * (x.ndim - 1)))  # noqa: E731
    return replace(fs.wrap(net, VP, predicts, **options), weights=weights)


class Mine:
    """A wrapper of somebody's own, of any name inside."""

    def __init__(self, inner):
        self.inner, self.seen = inner, 0

    def __call__(self, z, t):
        self.seen += 1
        return self.inner(z, t)


@dataclass
class Fields:
    several: tuple

    def __call__(self, z, t):
        return self.several[0](z, t)


class Slotted:
    """Nothing of it is in a `__dict__`."""

    __slots__ = ("__inner", "told")

    def __init__(self, inner):
        self.__inner = inner

    def __call__(self, z, t):
        return self.__inner(z, t)


@dataclass(frozen=True, slots=True)
class Frozen:
    inner: object

    def __call__(self, z, t):
        return self.inner(z, t)


@dataclass
class Late:
    """Given to a field that `__init__` does not take, and once more in an attribute that is no field."""

    name: str
    inner: object = field(init=False)

    @classmethod
    def around(cls, inner):
        made = cls("late")
        made.inner = made.same = inner
        return made

    def __call__(self, z, t):
        return self.inner(z, t)


@dataclass
class Derived:
    """Makes something of what it was given, and calls that."""

    given: object
    made: object = field(init=False)

    def __post_init__(self):
        self.made = Mine(self.given)

    def __call__(self, z, t):
        return self.made(z, t)


class Slots(Denoiser):
    def __init__(self, model):
        self.model = model

    def at(self, t, output="x0"):
        return self.model.at(t) if output == "x0" else self.beside(output, t)


def bound(inner, z, t):
    return inner(z, t)


AROUND = {
    "one": Mine,
    "three": lambda d: Mine(Mine(Mine(d))),
    "dataclass": lambda d: Fields((d,)),
    "partial": lambda d: partial(bound, d),
    "subclass": Slots,
    "slots": Slotted,
    "frozen slots": lambda d: Mine(Frozen(d)),
    "no argument": Late.around,
    "derived": Derived,
    "counted": fs.Counted,
    "mine in the library's": lambda d: fs.Counted(Mine(d)),
    "the library's in mine": lambda d: Mine(fs.Counted(d)),
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_a_wrapper_is_refused_on_another_process(around):
    for run in (partial(fs.sample, **RUN), partial(fs.solve, **RUN), partial(fs.solve, solver="rk45", shape=(2, 2))):
        with pytest.raises(ValueError, match=r"made for EDM.* and a run on VP"):
            run(around(oracle(EDM)), VP)
    with pytest.raises(ValueError, match="made for EDM"):
        fs.log_prob(around(oracle(EDM)), VP, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="made for .*EDM"):
        fs.guide(around(oracle(EDM)), oracle(), 2.0)
    wanted = fs.sample(oracle(), VP, **RUN)
    assert torch.equal(fs.sample(around(oracle()), VP, **RUN), wanted)


def test_a_wrapper_that_tells_a_process_is_taken_at_its_word():
    """What turns a denoiser of one process into one of another keeps the inner one in an attribute, too."""

    class Turned(Mine):
        process = VP

        def __call__(self, z, t):
            return fs.retime(self.inner, VP)(z, t)

    assert torch.equal(fs.sample(Turned(oracle(EDM)), VP, **RUN), fs.sample(fs.retime(oracle(EDM), VP), VP, **RUN))
    with pytest.raises(ValueError, match="made for VP"):
        fs.sample(Turned(oracle(EDM)), EDM, **RUN)
    unseen = oracle(EDM)
    fs.sample(lambda z, t: fs.retime(unseen, VP)(z, t), VP, **RUN)  # a function shows nothing of what it uses


def test_wrappers_of_two_processes_are_refused():
    with pytest.raises(ValueError, match="made for VP.* and a run on EDM"):
        fs.sample(Fields((oracle(EDM), oracle(VP))), EDM, **RUN)
    for wrong in (
        lambda: fs.Guided(base=oracle(EDM), shift=lambda z, t: 0 * z, process=VP),
        lambda: fs.Differentiated(Mine(oracle(EDM)), VP),
        lambda: fs.Composed(oracle(), (Mine(oracle(EDM)),), (1.0,)),
        lambda: fs.Thresholded(Mine(oracle(EDM)), process=VP),
    ):
        with pytest.raises(ValueError, match="give all of one process"):
            wrong()


def test_retime_asks_a_wrapper_for_its_process():
    wanted = fs.sample(fs.retime(oracle(), EDM), EDM, **RUN)
    assert torch.equal(fs.sample(fs.retime(Mine(Mine(oracle())), EDM), EDM, **RUN), wanted)


FITTED = {
    **AROUND,
    "retimed": lambda d: fs.retime(d, VP, source=VP),
    "composed": lambda d: fs.Composed(oracle(), (d,), (1.0,)),
    "any of": lambda d: fs.AnyOf((oracle(), d), (lambda z, t: z[:, 0], lambda z, t: z[:, 1])),
    "unconditional": lambda d: fs.guide(oracle(), Mine(d), 2.0),
    "classifier": lambda d: fs.ClassifierGuided(Mine(d), lambda z, t: -z.square().sum(1), 0.1),
}


@pytest.mark.parametrize("around", FITTED.values(), ids=FITTED)
def test_a_table_fitted_to_other_weights_warns_behind_every_wrapper(around):
    table = fs.tabulate("ddim", VP, steps=3)
    run = {"shape": (2, 2), "progress": False}
    with pytest.warns(UserWarning, match="fitted to the weights bbbbbbbbbbbb for the weights aaaaaaaaaaaa"):
        fs.sample(around(network()), VP, solver=replace(table, card={"weights": "b" * 64}), **run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fs.sample(around(network()), VP, solver=replace(table, card={"weights": "a" * 64}), **run)
    assert fingerprint(around(network())) == "a" * 64


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_taylor_runs_behind_every_wrapper(around):
    how = {**RUN, "solver": "taylor-2"}
    assert torch.equal(fs.sample(around(oracle()), VP, **how), fs.sample(oracle(), VP, **how))
    with pytest.raises(ValueError, match="derivative.*Differentiated makes one"):
        fs.sample(around(network()), VP, **how)


@pytest.mark.parametrize(
    "denoiser",
    [
        fs.Thresholded(oracle(), None, bound=0.5),
        fs.Thresholded(oracle(), 0.6, bound=0.3),
        fs.retime(oracle(fs.Flow()), VP),
        fs.guide(oracle(), oracle(shift=0.5), 3.0),
        fs.Composed(oracle(), (oracle(shift=0.5), oracle(shift=-0.5)), (1.0, -0.5)),
        Mine(fs.Thresholded(oracle(), None, bound=0.5)),
    ],
)
def test_the_derivative_of_a_wrapper_is_that_of_what_it_returns(denoiser):
    """Along the ODE of the wrapper itself, by a central difference of one step of it each way."""
    denoiser, t, h = as_denoiser(denoiser), 0.45, 1e-6
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    d = denoiser(z, t)
    ratio = VP.R_rate(t) / VP.R(t)
    velocity = ratio * z + (VP.M_rate(t) - ratio * VP.M(t)) * d
    wanted = (denoiser(z + h * velocity, t + h) - denoiser(z - h * velocity, t - h)) / (2 * h)
    head = denoiser.head("derivative", t)
    assert head is not None
    torch.testing.assert_close(head(z), wanted, rtol=1e-5, atol=1e-6)


def test_heads_come_from_the_one_that_is_wrapped():
    guided = fs.guide(oracle(), oracle(shift=0.5), 3.0)
    how = {**RUN, "solver": "ddim-cfgpp"}
    assert torch.equal(fs.sample(Mine(Mine(guided)), VP, **how), fs.sample(guided, VP, **how))
    with pytest.raises(ValueError, match="reads output 'base'"):  # of two it is not known whose
        fs.sample(Fields((oracle(), oracle())), VP, **how)
    with pytest.raises(ValueError, match="reads output 'base'"):  # these are not what is returned
        fs.sample(fs.Thresholded(guided), VP, **how)


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_gradients_inside_are_seen_from_outside(around):
    """A network that differentiates inside needs autograd, however deep it is."""
    inner = replace(network(), needs_grad=True, net=lambda x, t: _slope(x))
    assert as_denoiser(around(inner)).needs_grad
    assert not as_denoiser(around(network())).needs_grad
    assert fs.sample(around(inner), VP, **RUN).isfinite().all()
    assert fs.sample(fs.Guided(base=Mine(inner), shift=lambda z, t: 0 * z, process=VP), VP, **RUN).isfinite().all()


def _slope(x):
    x = x.requires_grad_()
    return torch.autograd.grad(x.square().sum() / 2, x)[0]


def test_what_predicts_but_has_no_raw_outputs_runs():
    """Large states run on raw outputs where a network hands them on; a word about it alone hands on nothing."""
    told = lambda z, t: 0.5 * z  # noqa: E731
    told.predicts = "noise"
    x = torch.randn(2, 2**14, generator=torch.Generator().manual_seed(1))
    wanted = fs.sample(lambda z, t: 0.5 * z, VP, solver="ddim", x=x, steps=3)
    assert torch.equal(fs.sample(told, VP, solver="ddim", x=x, steps=3), wanted)
    table = fs.tabulate("ddim", VP, steps=3)
    assert on_raw_outputs(table, told) is table
    assert on_raw_outputs(table, fs.Counted(network())).output == "noise"
    assert on_raw_outputs(table, Mine(network())) is table


class Labelled:
    """A network behind a class of somebody's own, with what is bound to the samples."""

    def __init__(self, denoiser):
        self.denoiser = denoiser

    def __call__(self, z, t):
        return self.denoiser(z, t)


def conditioned(**conditions):
    """A network that answers with its conditions; refused where they are for another batch."""

    def net(x, t, labels=None, prompts=(), images=None, added=None):
        if labels is not None:
            x = x + labels[:, None]
        if prompts:
            x = x + torch.tensor([float(len(p)) for p in prompts])[:, None]
        if images is not None:
            x = x + torch.as_tensor(images).mean((1, 2), dtype=torch.float32)[:, None]
        return x + added["scale"][:, None] * added["pair"][0][:, None] if added else x

    return fs.wrap(partial(net, **conditions), VP, "data")


@pytest.mark.parametrize(
    "conditions",
    [
        {"labels": torch.arange(4.0)},
        {"prompts": ["a", "bb", "ccc", "dddd"]},
        {"images": torch.arange(16.0).reshape(4, 2, 2)},
        {"images": torch.arange(16.0).reshape(4, 2, 2).numpy()},
        {"added": {"scale": torch.arange(4.0), "pair": (torch.arange(4.0), 7)}},
    ],
    ids=["labels", "prompts", "images", "arrays", "nested"],
)
@pytest.mark.parametrize("around", [lambda d: d, Labelled, lambda d: Mine(fs.Counted(Labelled(d)))])
def test_every_condition_goes_along_with_its_sample(conditions, around):
    denoiser, index, z = around(conditioned(**conditions)), torch.tensor([3, 1, 1]), torch.randn(4, 2)
    wanted = denoiser(z, 0.4)[index]
    assert torch.allclose(as_denoiser(of_samples(denoiser, index, 4))(z[index], 0.4), wanted, atol=1e-6)
    whole = fs.sample(denoiser, VP, solver="ddim", steps=3, shape=(4, 2))
    assert torch.allclose(
        fs.sample(denoiser, VP, solver="ddim", steps=3, shape=(4, 2), memory="1TiB"), whole, atol=1e-5
    )


def test_some_samples_of_a_counted_denoiser_count_with_the_others():
    counted = fs.Counted(conditioned(labels=torch.arange(4.0)))
    of_samples(counted, torch.tensor([2]), 4)(torch.zeros(1, 2), 0.5)
    counted(torch.zeros(4, 2), 0.5)
    assert (counted.calls, counted.evaluations) == (2, 5)


def test_layers_leaves_and_mapped():
    one, other = oracle(), network()
    tree = fs.Counted(Mine(fs.Composed(one, (other, Mine(one)), (1.0, 2.0))))
    assert list(leaves(tree)) == [one, other]  # each once
    assert [type(layer).__name__ for layer in layers(tree)][:3] == ["Counted", "Plain", "Composed"]
    assert mapped(tree, lambda part: part) is tree
    swapped = mapped(tree, lambda part: other if part is one else part)
    assert list(leaves(swapped)) == [other]
    assert list(leaves(tree)) == [one, other]
    looped = Mine(one)
    looped.itself = looped
    assert list(leaves(looped)) == [one]
    assert mapped(looped, lambda part: part) is looped


def test_the_default_hears_of_networks_through_wrappers():
    assert about(Mine(fs.retime(network(), VP, source=VP))) == about(network())
    assert about(fs.Composed(network(), (network(),), (1.0,))) == {}
    assert about(fs.guide(Mine(network()), network(), 3.0)) == {"guidance": 3.0, "predicts": "noise", "error": 0.0}
    assert about(Mine(oracle())) == {}


class Tells:
    """Any object with a process, no `Denoiser`."""

    def __init__(self, process):
        self.process, self.exact = process, oracle(process)

    def __call__(self, z, t):
        return self.exact(z, t)


class Around(Denoiser):
    def __init__(self, inner):
        self.inner = inner

    def at(self, t, output="x0"):
        return (lambda z: self.inner(z, t)) if output == "x0" else self.beside(output, t)


def test_a_subclass_around_any_object_is_refused_on_its_other_process_then_and_later():
    made = Around(Tells(VP))
    fs.sample(made, VP, **RUN)
    made.inner = Tells(EDM)
    for one in (Around(Tells(EDM)), made):
        with pytest.raises(ValueError, match=r"made for EDM.* and a run on VP"):
            fs.sample(one, VP, **RUN)


def test_raw_outputs_of_an_object_that_does_not_say_what_it_predicts_are_its_own():
    class Raw:
        def __init__(self):
            self.asked = []

        def __call__(self, z, t):
            return self.at(t)(z)

        def at(self, t, output="x0"):
            self.asked.append(output)
            return lambda z: 0.5 * z

    raw = Raw()
    fs.sample(raw, VP, solver=fs.tabulate("ddim", VP, steps=3).in_terms_of("v"), shape=(3, 2), progress=False)
    assert raw.asked == ["v"] * 3


class Twice:
    """Around one denoiser by two ways: 30 of them are a tree of a thousand million leaves."""

    def __init__(self, inner):
        self.one, self.other = Mine(inner), inner

    def __call__(self, z, t):
        return self.other(z, t)


def twice(inner, deep):
    for _ in range(deep):
        inner = Twice(inner)
    return inner


def test_what_wrappers_share_is_looked_at_once():
    deep = twice(network(), 30)
    assert sum(1 for _ in layers(deep)) == 61
    assert len(list(leaves(deep))) == 1
    assert fingerprint(deep) == "a" * 64
    assert not as_denoiser(deep).needs_grad
    assert as_denoiser(twice(oracle(), 30)).heads == oracle().heads
    with pytest.raises(ValueError, match="made for EDM"):
        fs.sample(twice(oracle(EDM), 30), VP, **RUN)
    part = twice(oracle(), 2)
    for _ in range(30):
        part = fs.Composed(part, (part,), (1.0,))
    assert "derivative" in part.heads
    assert not part.needs_grad
    bound_ = twice(conditioned(labels=torch.arange(4.0)), 30)
    some = of_samples(bound_, torch.tensor([2]), 4)
    assert some(torch.zeros(1, 2), 0.5)[0, 0] == 2.0
    assert sum(1 for _ in layers(some)) == 61
    made = fs.denoiser.compiled(bound_)
    assert made is not bound_
    assert sum(1 for _ in layers(made)) == 61


def test_wrappers_that_know_each_other_have_an_end():
    one, other = Mine(None), Mine(oracle(EDM))
    one.inner, other.back = other, one
    assert "derivative" in as_denoiser(one).heads
    assert not as_denoiser(one).needs_grad
    with pytest.raises(ValueError, match="made for EDM"):
        fs.sample(one, VP, **RUN)


def test_what_is_made_of_a_field_is_changed_with_it():
    """Once, where `__init__` makes it again; as a field that nothing makes where it does not."""
    for around in (Derived, Late.around, Slotted, Frozen):
        some = of_samples(around(conditioned(labels=torch.arange(4.0))), torch.tensor([3, 1]), 4)
        torch.testing.assert_close(some(torch.zeros(2, 2), 0.5)[:, 0], torch.tensor([3.0, 1.0]))


def test_conditions_in_a_mapping_of_its_own_kind_stay_of_that_kind():
    """As a tokenizer's: what it offers beside its entries is still there for some of the samples."""

    class Encoding(UserDict):
        @property
        def size(self):
            return self["ids"].shape[1]

    def net(x, t, *, given):
        return x * given.size + given["ids"][:, :1]

    z, index = torch.randn(3, 2), torch.tensor([2, 0])
    denoiser = fs.wrap(partial(net, given=Encoding(ids=torch.arange(12.0).reshape(3, 4))), VP, predicts="data")
    torch.testing.assert_close(of_samples(denoiser, index, 3)(z[index], 0.4), denoiser(z, 0.4)[index])
    fixed = MappingProxyType({"ids": torch.arange(12.0).reshape(3, 4)})
    some = of_samples(partial(net, given=fixed), index, 3)
    assert torch.equal(some.keywords["given"]["ids"], fixed["ids"][index])
