"""What a real TensorBoard reads of a run: event files, and the table of its HParams tab."""

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler

NAMES = {number: name.removeprefix("STATUS_") for name, number in api_pb2.Status.items()}


def board(folder):
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def sessions(folder):
    """Return the rows of the HParams tab by run: (status, settings, metrics)."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    request = api_pb2.ListSessionGroupsRequest(slice_size=99, allowed_statuses=list(NAMES))
    rows = {}
    for group in Handler(RequestContext(), context, "", request).run().session_groups:
        (session,) = group.sessions
        kinds = {name: value.WhichOneof("kind") for name, value in group.hparams.items()}
        settings = {name: getattr(group.hparams[name], kind) for name, kind in kinds.items()}
        metrics = {value.name.tag: value.value for value in session.metric_values}
        rows[group.name] = NAMES[session.status], settings, metrics
    return rows
