"""The HParams tab, as TensorBoard's own server reads it."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

from vitlab.core.run_folder import RunFolder
from vitlab.core.summary import SummaryData
from vitlab.training.trackers.tensorboard import HPARAMS, TensorBoardTracker, flatten
from vitlab.training.trackers.tracker import METRICS


def config(**swept: Any) -> dict[str, Any]:
    """Return the config of a run of a sweep over ``model`` keys."""
    return {
        "seed": 0,
        "model": {"patch_size": 4, "depth": 6} | swept,
        "optimizer": {"lr": 1e-3},
        "choices": {"model": "vit_tiny", "model/tokenizer": "patch"},
        "overrides": [f"model.{key}={value}" for key, value in swept.items()],
        "swept": [f"model.{key}" for key in swept],
    }


def write(folder: Path, made: dict[str, Any], value: float) -> None:
    folder.mkdir(parents=True)
    logger = TensorBoardTracker(RunFolder(folder), purge_step=None)
    logger.begin(made)
    logger.log_metrics({"train/loss": 2.0}, 8)
    summary: SummaryData = {
        "metrics": {"val/accuracy": value, "test/accuracy": value},
        "model": {"parameters": value},
        "train": {"images_per_second": None},
    }
    logger.end(summary, 16)
    logger.experiment.close()


def read(logdir: Path) -> tuple[api_pb2.Experiment, dict[str, api_pb2.SessionGroup]]:
    """Return the columns of the table, and its rows by the name of the run."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(logdir))
    runs.Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(logdir))))
    request = RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, metadata, [])
    wanted = api_pb2.ListSessionGroupsRequest(
        slice_size=100,
        include_metrics=True,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING],
        aggregation_type=api_pb2.AGGREGATION_AVG,
        col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
    )
    groups = Handler(request, context, "", wanted).run().session_groups
    return experiment, {group.sessions[0].name: group for group in groups}


def test_every_run_of_a_sweep_is_shown_with_what_was_swept_and_its_metrics(tmp_path: Path) -> None:
    for depth in (4, 6):
        write(tmp_path / f"depth-{depth}", config(depth=depth), depth / 10)
    experiment, rows = read(tmp_path)
    assert [info.name.tag for info in experiment.metric_infos] == list(METRICS)
    shown = [info.name for info in experiment.hparam_infos][:5]
    assert shown == ["data", "model", "model.depth", "optimizer.lr", "swept"], "first in the table"
    assert set(rows) == {"depth-4", "depth-6"}
    for name, depth in (("depth-4", 4), ("depth-6", 6)):
        hparams = rows[name].hparams
        assert hparams["model.depth"].number_value == depth
        assert hparams["swept"].string_value == f"depth={depth}"
        found = {value.name.tag: value.value for value in rows[name].metric_values}
        assert found["hp/val_accuracy"] == pytest.approx(depth / 10)
        assert "hp/images_per_second" not in found, "too short to measure"


def test_runs_of_several_sweeps_share_a_table(tmp_path: Path) -> None:
    write(tmp_path / "a" / "depth-4", config(depth=4), 0.1)
    write(tmp_path / "b" / "mine-7", config(mine=7), 0.2)
    write(tmp_path / "c", config(), 0.3)
    experiment, rows = read(tmp_path)
    assert {info.name for info in experiment.hparam_infos} >= {*HPARAMS, "swept"}
    swept = {name: row.hparams["swept"].string_value for name, row in rows.items()}
    assert swept == {"a/depth-4": "depth=4", "b/mine-7": "mine=7", "c": "-"}
    assert all(row.metric_values for row in rows.values())


def test_every_run_has_the_fixed_keys_whatever_its_model_has() -> None:
    keys = {frozenset(flatten(made)) for made in (config(), config(depth=4), config(patch_size=[2, 4]))}
    assert len(keys) == 1
    flat = flatten(config(patch_size=[2, 4]))
    assert flat["model.patch_size"] == "[2, 4]"
    assert flat["model.drop_path"] == "-"
    assert not any(value is None for value in flat.values())
