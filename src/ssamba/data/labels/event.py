"""An event: a stretch of a recording with a name."""

from __future__ import annotations

from dataclasses import dataclass, field

from ssamba.utils.errors import DataError


@dataclass(frozen=True)
class Event:
    """A named stretch of a recording.

    Attributes:
        start, end: seconds; equal for a point in time.
        label: its name.
        score: how sure a model is, 0 to 1; None for a label that a person gave.
        low_hz, high_hz: its range of frequencies, where one is known.
    """

    start: float
    end: float
    label: str
    score: float | None = None
    low_hz: float | None = None
    high_hz: float | None = None

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start


@dataclass(frozen=True)
class LabelRow:
    """An event as a label file has it: ``where`` it stands ("line 3"), and the ``recording`` it names, if any."""

    event: Event
    where: str
    recording: str | None = None


@dataclass(frozen=True)
class RecordingEvents:
    """The events of one recording of ``seconds``, by start.

    ``highest_hz`` is the highest frequency that was read, ``details`` what JSON and JAMS hold of how they were found.
    """

    path: str
    seconds: float
    events: tuple[Event, ...] = ()
    highest_hz: float = 8000.0
    details: dict[str, object] = field(default_factory=dict)


def checked_event(event: Event, where: str) -> Event:
    """The event, when it can be one. Raises ``DataError`` that begins with ``where`` (file and line)."""
    if event.start < 0:
        raise DataError(f"{where}: the label {event.label!r} starts at {event.start:g} s; give 0 or more")
    if event.end < event.start:
        raise DataError(
            f"{where}: the label {event.label!r} ends at {event.end:g} s, before its start at {event.start:g} s; "
            "correct the times"
        )
    if not event.label:
        raise DataError(f"{where}: the label at {event.start:g} s has no name; give it one, or remove it")
    return event
