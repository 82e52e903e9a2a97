"""The methods of other libraries, as their documentation has them."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from tests.benchmarks.kronfluence_task import kronfluence_task
from tests.evaluation.methods import Fitted, Method, NotHere
from tests.evaluation.tasks import Trained

_DIM = 2048  # what TRAK keeps of a gradient where nothing is said


def _all(data: Any) -> DataLoader[Any]:
    """One batch: of several, some sum the inverses."""
    return DataLoader(TensorDataset(*data), batch_size=len(data[1]))


def _kronfluence(trained: Trained, folder: Path) -> Fitted:
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments

    task, count = kronfluence_task(), len(trained.split.wrong)
    net, training = prepare_model(copy.deepcopy(trained.net), task), TensorDataset(*trained.split.training)
    analyzer = Analyzer("evaluation", net, task, cpu=True, disable_tqdm=True, output_dir=str(folder))
    analyzer.fit_all_factors("ekfac", training, count, factor_args=FactorArguments("ekfac"))

    def scores(damping: float, *test: Any) -> Any:
        analyzer.compute_pairwise_scores(
            "scores",
            "ekfac",
            TensorDataset(*test),
            training,
            per_device_query_batch_size=len(test[1]),
            per_device_train_batch_size=count,
            score_args=ScoreArguments(damping_factor=damping),
            overwrite_output_dir=True,
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"] / count

    return scores


def _pydvl_cg(trained: Trained, folder: Path) -> Fitted:
    from pydvl.influence.torch import CgInfluence

    logging.getLogger("pydvl").setLevel(logging.ERROR)
    training, loader = trained.split.training, _all(trained.split.training)

    def scores(damping: float, *test: Any) -> Any:
        influence = CgInfluence(
            trained.net, cross_entropy, regularization=damping, solve_simultaneously=True
        ).fit(loader)
        return influence.influences(*test, *training).detach()

    return scores


def _pydvl_ekfac(trained: Trained, folder: Path) -> Fitted:
    from pydvl.influence.torch import EkfacInfluence

    if any(not isinstance(trained.net.get_submodule(name), nn.Linear) for name in trained.layers()):
        raise NotHere("takes Linear layers only")
    net, training = copy.deepcopy(trained.net), trained.split.training  # it adds to what grad holds
    influence = EkfacInfluence(net, update_diagonal=True).fit(_all(training))

    def scores(damping: float, *test: Any) -> Any:
        at = influence.ekfac_representation
        made = EkfacInfluence(net, update_diagonal=True, hessian_regularization=damping)
        made.ekfac_representation = at
        return made.influences_from_factors(made.influence_factors(*test), *training).detach()

    return scores


def _dattri_task(trained: Trained) -> Any:
    from dattri.task import AttributionTask

    shape = trained.split.training[0].shape[1:]

    def value(params: Any, data: Any) -> Tensor:
        outputs = torch.func.functional_call(trained.net, params, (data[0].reshape(-1, *shape),))
        return cross_entropy(outputs, data[1].reshape(-1))

    return AttributionTask(value, trained.net, trained.net.state_dict())


def _dattri_cg(trained: Trained, folder: Path) -> Fitted:
    from dattri.algorithm.influence_function import IFAttributorCG

    loader = _all(trained.split.training)

    def scores(damping: float, *test: Any) -> Any:
        made = IFAttributorCG(_dattri_task(trained), regularization=damping)
        made.cache(loader)
        return made.attribute(loader, _all(test)).detach().T

    return scores


def _dattri_ekfac(trained: Trained, folder: Path) -> Fitted:
    from dattri.algorithm.influence_function import IFAttributorEKFAC

    if not all(isinstance(trained.net.get_submodule(name), nn.Linear) for name in trained.layers()):
        raise NotHere("takes Linear layers only")
    loader = _all(trained.split.training)
    made = IFAttributorEKFAC(_dattri_task(trained))
    made.cache(loader)

    def scores(damping: float, *test: Any) -> Any:
        made.damping = damping
        return made.attribute(loader, _all(test)).detach().T

    return scores


def _trak(trained: Trained, folder: Path) -> Fitted:
    from trak import TRAKer

    training, count = trained.split.training, len(trained.split.wrong)
    number = iter(range(1000))

    def scores(damping: float, *test: Any) -> Any:
        made = TRAKer(
            model=copy.deepcopy(trained.net),
            task="image_classification",
            train_set_size=count,
            save_dir=str(folder / f"trak-{next(number)}"),
            device="cpu",
            use_half_precision=False,
            lambda_reg=damping * count * _DIM / trained.size,  # of its sums of products, which are larger so
            logging_level=logging.ERROR,
        )
        state = trained.net.state_dict()
        made.load_checkpoint(state, model_id=0)
        for batch in (tuple(part[i : i + 50] for part in training) for i in range(0, count, 50)):
            made.featurize(batch=batch, num_samples=len(batch[1]))
        made.finalize_features()
        made.start_scoring_checkpoint("test", state, model_id=0, num_targets=len(test[1]))
        made.score(batch=test, num_samples=len(test[1]))
        return torch.as_tensor(made.finalize_scores("test")).T

    return scores


def _captum_tracin(trained: Trained, folder: Path) -> Fitted:
    from captum.influence import TracInCP

    files = []
    for number, state in enumerate(trained.checkpoints):
        files.append(str(folder / f"{number}.pt"))
        torch.save(state, files[-1])
    made = TracInCP(
        trained.net,
        TensorDataset(*trained.split.training),
        files,
        _load,
        loss_fn=nn.CrossEntropyLoss(reduction="none"),
        batch_size=len(trained.split.wrong),
    )
    return lambda damping, *test: made.influence(test)


def _captum_arnoldi(trained: Trained, folder: Path) -> Fitted:
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction

    torch.save(trained.net.state_dict(), folder / "net.pt")

    def scores(damping: float, *test: Any) -> Any:
        made = ArnoldiInfluenceFunction(
            trained.net,
            TensorDataset(*trained.split.training),
            str(folder / "net.pt"),
            _load,
            loss_fn=nn.CrossEntropyLoss(reduction="none"),
            batch_size=len(trained.split.wrong),
            hessian_reg=damping,
        )
        return made.influence(test)

    return scores


def _load(net: nn.Module, file: str) -> float:
    net.load_state_dict(torch.load(file))
    return 1.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and the lines that they print."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def _both(name: str, library: str, fit: Any, documented: float, module: str) -> tuple[Method, Method]:
    make = partial(Method, library=library, fit=fit, modules=(module,))
    return make(f"{name}, as documented", damping=documented), make(f"{name}, tuned", tuned=True)


_DATTRI = "dattri.algorithm.influence_function"
METHODS = (
    *_both("EK-FAC", "kronfluence", _kronfluence, 1e-8, "kronfluence.analyzer"),
    *_both("CG", "pyDVL", _pydvl_cg, 0.0, "pydvl.influence.torch"),
    *_both("EK-FAC", "pyDVL", _pydvl_ekfac, 0.0, "pydvl.influence.torch"),
    *_both("CG", "dattri", _dattri_cg, 0.0, _DATTRI),
    *_both("EK-FAC", "dattri", _dattri_ekfac, 0.0, _DATTRI),
    *_both("TRAK, one training", "traker", _trak, 0.0, "trak"),
    *_both("Arnoldi", "captum", _captum_arnoldi, 1e-3, "captum.influence"),
    Method("TracInCP, 5 checkpoints", "captum", _captum_tracin, modules=("captum.influence",)),
)
