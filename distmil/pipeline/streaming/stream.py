"""Tiling with embedding behind it: a slide is embedded as soon as it is committed, while others are tiled."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from distmil.cohort import Slide
from distmil.config.root import Config
from distmil.encoders.embedder import SlideEmbedder
from distmil.encoders.engines.stored import SAMPLED_SHARDS
from distmil.encoders.registry import EncoderSpec
from distmil.pipeline.job import Job, Tiled
from distmil.pipeline.streaming.chain import Stage, chain_slides
from distmil.pipeline.streaming.embedding import Embedder, Gathered, Shard, embedding_arguments, shards_of, uses_gpu
from distmil.pipeline.streaming.engine import has_engine, with_engine
from distmil.pipeline.tile import Done, Piece, Tiler, find_tiled, tile, tile_all, tile_some, write_slides_table
from distmil.storage.records import Record
from distmil.storage.store import Store


def tile_ahead(job: Job, slides: Sequence[Slide], spec: EncoderSpec) -> tuple[Tiled, dict[str, Record]]:
    """Tile every slide that is not done as ``tile`` does, and embed slides meanwhile where ``tiling.stream`` says so.

    Returns:
        The outcome of the tiling, and the records of the embeddings that were made, by slide id. What is not among them
        is left to ``embed``.

    Raises:
        StorageError: If the store cannot be written, or a patch shard is damaged.
    """
    tiled, todo = find_tiled(job, slides)
    if not todo or not _is_wanted(job, spec):
        return tile(job, slides, found=(tiled, todo)), {}
    if not has_engine(job, spec):  # it is chosen on patches
        tile_some(job, todo[:SAMPLED_SHARDS], tiled)
        spec = with_engine(job, slides, tiled.records, spec)
    stream = _Stream(job, spec, {slide.slide_id: slide for slide in slides})
    stream.run(tiled, [slide for slide in todo if slide.slide_id not in tiled.records])
    write_slides_table(job, slides, tiled)
    return tiled, {slide_id: record for (slide_id, _), record in stream.gathered.records.items()}


def _is_wanted(job: Job, spec: EncoderSpec) -> bool:
    wanted = job.config.tiling.stream
    return uses_gpu(job, spec) if wanted == "auto" else wanted


@dataclass
class _Stream:
    """One run of the stream, on the driver."""

    job: Job
    spec: EncoderSpec
    slides: Mapping[str, Slide]
    gathered: Gathered = field(default_factory=Gathered)
    _ahead: list[Piece] = field(default_factory=list)
    """Slides that are tiled, and wait to be embedded."""

    def run(self, tiled: Tiled, todo: Sequence[Slide]) -> None:
        """Tile ``todo`` into ``tiled``, and embed these slides and those that are tiled already."""
        job = self.job
        waiting = [self._embedder(record) for record in tiled.records.values() if record.ok]
        waiting = [embedder for embedder in waiting if embedder.finished() is None]
        for embedder in waiting:
            self.gathered.expect(embedder)
        self._ahead = [(self.slides[embedder.patches.name], None) for embedder in waiting]
        num_slides, noun = len(todo) + len(waiting), f"{job.outcomes.noun}s"
        job.console.note(f"embedding {num_slides} {noun} with {self.spec.name} at the same time, each when it is tiled")
        with job.console.progress("embed", num_slides, noun) as advance:
            self.gathered.when_done = advance
            tile_all(job, todo, tiled, self._ask)

    def _embedder(self, patches: Record) -> SlideEmbedder:
        return SlideEmbedder(patches, self.job.config, self.spec, self.job.store)

    def _ask(self, pieces: Sequence[Piece], *, most_chunks: int) -> Iterator[tuple[Piece, Done]]:
        """Have pieces done and slides embedded, and yield the pieces; see ``distmil.pipeline.tile.Ask``."""
        ahead, self._ahead = self._ahead, []
        is_gpu = uses_gpu(self.job, self.spec)
        embedding = embedding_arguments(self.job, self.spec, self.slides.values(), is_gpu=is_gpu)
        tiling = {"config": self.job.config, "store": self.job.store, "spec": self.spec, "most_chunks": most_chunks}
        known = {slide.slide_id for slide, _ in ahead}
        found = chain_slides([*ahead, *pieces], Stage(_Tiler, tiling), Stage(Embedder, embedding), is_gpu=is_gpu)
        for item, answer in found:
            if isinstance(item, Shard):
                self.gathered.add(item, answer)
            elif item[0].slide_id not in known:
                self._note(answer[0].record)
                yield item, answer

    def _note(self, record: Record | None) -> None:
        """Expect the embeddings of a slide that was committed; a slide that cannot be used has none."""
        if record is None:
            return
        if record.ok:
            self.gathered.expect(self._embedder(record))
        else:
            self.gathered.when_done()


class _Tiler:
    """Does pieces of work as ``Tiler``, and has the shards of a committed slide embedded."""

    def __init__(self, config: Config, store: Store, spec: EncoderSpec, most_chunks: int) -> None:
        self._config, self._store, self._spec = config, store, spec
        self._tiler = Tiler(config.tiling, store, most_chunks)

    def __call__(self, piece: Piece) -> tuple[Done, list[Shard]]:
        """Do one piece, and list the shards that can be embedded then."""
        done = self._tiler(piece)
        record = done[0].record
        if record is None or not record.ok:
            return done, []
        is_embedded = SlideEmbedder(record, self._config, self._spec, self._store).finished() is not None
        return done, [] if is_embedded else shards_of(record)
