"""From the words of a concept to what training needs: forget prompts, retain prompts, anchors.

The prompts a base model is known to draw (those its reward predictor was trained on) are divided by whether
they name the concept. The anchors of a forget prompt are the retain prompts that say the same without the
concept, so that "a tree image in Van Gogh style" is told apart from trees in other styles, and "a cat image
in Mosaic style" from other objects in mosaic. A concept that no known prompt names is asked for in the
wordings of its kind, and its anchors and neighbours come from the bundled vocabularies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import cycle, zip_longest
from statistics import fmean

import torch

from common.texts import folded
from reward.concept.spec import ConceptSpec, SpecError, check_spec, clean_concepts
from reward.concept.vocabulary import (
    KINDS,
    asking_for,
    plain_name,
    vocabulary,
    with_other,
    without_concept,
)
from reward.concept.words import contains_concept, distinctive_words, nearest_without, words

TextEncoder = Callable[[list[str]], torch.Tensor]
"""N texts -> unit-length embeddings (N, D), as the teacher makes them."""

STYLE_WORDS = {"style", "painting", "art", "artwork", "drawing", "illustration", "manner", "artist"}
UNSAFE_WORDS = {
    "nsfw",
    "nude",
    "nudity",
    "naked",
    "porn",
    "pornography",
    "sexual",
    "erotic",
    "gore",
    "blood",
    "violence",
    "violent",
    "unsafe",
    "hate",
}
VOTES = 8
"""How many neighbours of a concept tell its kind."""
ENOUGH, ENOUGH_SHARE = 3, 0.05
"""A concept that fewer known prompts name, and a smaller share of them, is asked for in the wordings of
its kind too."""
NEIGHBOURS = 8
"""How many names of its kind stand beside such a concept."""
MAX_ANCHORS = 8
"""Of a prompt, for each of at most two concepts that it names."""
CONFUSABLE = 0.5
"""A text nearer to the concept than this share of the usual distance between neighbours means nearly the
same."""


def make_spec(
    concepts: Sequence[str],
    known_prompts: list[str],
    encode_text: TextEncoder,
    *,
    forget_prompts: list[str] | None = None,
    retain_prompts: list[str] | None = None,
    anchor_prompts: list[str] | None = None,
    kind: str | None = None,
    num_retain_prompts: int = 128,
) -> ConceptSpec:
    """Build the spec from the concept alone, or from the lists that are given.

    Args:
        concepts: what to erase, at least one non-empty text.
        known_prompts: prompts the base model draws.
        encode_text: the teacher's view of texts, for neighbours.
        forget_prompts: used as they are instead of prompts made from the concepts.
        retain_prompts: used as they are instead of a choice from the prompts that name no concept.
        anchor_prompts: used for every forget prompt instead of its nearest retain prompts.
        kind: one of `KINDS` for all concepts. Default: told from wording and neighbours.
        num_retain_prompts: how many retain prompts are chosen at most, half of them the concepts' nearest,
            the others as diverse as can be.

    Raises:
        SpecError: a concept is empty, nothing is left to retain, or a prompt is to be forgotten and kept at
            once.
    """
    concepts, encode_text = clean_concepts(concepts), remembering(encode_text)
    kinds = [kind or kind_of(concept, encode_text) for concept in concepts]
    corpus = list(dict.fromkeys([*known_prompts, *(retain_prompts or [])]))

    def asks_for_concept(prompt: str) -> bool:
        return any(contains_concept(prompt, concept, corpus) for concept in concepts)

    forget = (
        [p for p in known_prompts if asks_for_concept(p)] if forget_prompts is None else list(forget_prompts)
    )
    times = (
        {c: sum(contains_concept(p, c, corpus) for p in forget) for c in concepts}
        if forget_prompts is None
        else {}
    )
    enough = min(ENOUGH, ENOUGH_SHARE * len(known_prompts))
    seldom, unnamed = (
        [c for c, n in times.items() if n == 0 or n < enough],
        [c for c, n in times.items() if n == 0],
    )
    candidates, confusable = retain_prompts or [], {}
    if retain_prompts is None:
        meant = set(map(folded, forget))
        others = [p for p in known_prompts if not asks_for_concept(p) and folded(p) not in meant]
        candidates, too_near = apart_from(forget, others, encode_text)
        confusable = {", ".join(concepts): too_near} if too_near else {}
    if not candidates and not seldom:
        raise SpecError(
            "No prompt is left to retain; give prompts the model must go on drawing with --retain_prompts FILE."
        )
    anchors = find_anchors(forget, concepts, candidates, corpus, encode_text)

    beside: list[str] = []
    for concept in seldom:
        its_kind = kinds[concepts.index(concept)]
        neighbours, too_near = neighbours_of(concept, its_kind, concepts, encode_text)
        asked = zip(
            asking_for(its_kind, concept),
            without_concept(its_kind, neighbours[: MAX_ANCHORS // 2]),
            strict=True,
        )
        new = [(prompt, row) for prompt, row in asked if prompt not in forget]
        forget += [prompt for prompt, _ in new]
        anchors += [row for _, row in new]
        beside += [asking_for(its_kind, name)[0] for name in neighbours]
        confusable |= {concept: too_near} if too_near else {}
    if anchor_prompts is not None:
        anchors = [anchor_prompts] * len(forget)
    if retain_prompts is None:
        # The first anchor of every row before the second of any, should there be room for some only.
        columns = (
            []
            if anchor_prompts is not None
            else [text for column in zip_longest(*anchors) for text in column if text]
        )
        wanted = list(dict.fromkeys([*beside, *columns]))
        retain_prompts = choose_retain(forget, wanted, candidates, num_retain_prompts, encode_text)
    return check_spec(ConceptSpec(concepts, forget, retain_prompts, anchors, kinds, unnamed, confusable))


def remembering(encode_text: TextEncoder) -> TextEncoder:
    """The same encoder, asked for every text once."""
    known: dict[str, torch.Tensor] = {}

    def encode(texts: list[str]) -> torch.Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, encode_text(new), strict=True))
        return torch.stack([known[text] for text in texts])

    return encode


def kind_of(concept: str, encode_text: TextEncoder) -> str:
    """One of `KINDS`: told from the wording where it tells, else from what the concept's nearest
    neighbours are."""
    found = set(words(concept))
    if found & UNSAFE_WORDS:
        return "unsafe"
    if found & STYLE_WORDS or " by " in f" {concept.casefold()} " or any(w.endswith("ism") for w in found):
        return "style"
    listed = {kind: [*vocabulary(kind)] for kind in KINDS}
    for kind, names in listed.items():
        if folded(plain_name(concept)) in map(folded, names):
            return kind
    known = [(kind, name) for kind in KINDS for name in listed[kind]]
    similarity = encode_text([name for _, name in known]) @ encode_text([plain_name(concept)])[0]
    votes = similarity.topk(min(VOTES, len(known)))
    weight = dict.fromkeys(KINDS, 0.0)
    for value, index in zip(votes.values.tolist(), votes.indices.tolist(), strict=True):
        weight[known[index][0]] += value
    return max(weight, key=lambda kind: weight[kind])


def find_anchors(
    prompts: Sequence[str],
    concepts: Sequence[str],
    candidates: list[str],
    corpus: list[str],
    encode_text: TextEncoder,
) -> list[list[str]]:
    """For each prompt the candidates that say the same without the concepts, the best first.

    All prompts should put the same in the concept's place: a policy that is held to another anchor under
    every prompt draws their mean. So that substitute comes first which most prompts can take, and of these
    the one that leaves the prompts nearest to what they were, in the teacher's eyes.

    A prompt that names two concepts becomes what each of them becomes in the prompts that name it alone, so
    it may have as many anchors as there are pairs of these.
    """
    if not candidates:
        return [[] for _ in prompts]
    removed = set().union(*(distinctive_words(concept, corpus) for concept in concepts))
    rows, likeness = [], defaultdict[frozenset[str], list[float]](list)
    for prompt in prompts:
        found = nearest_without(prompt, list(concepts), candidates, corpus)
        kept = set(words(prompt)) - removed
        rows.append({text: frozenset(words(text)) - kept for text in found})
        similarity = encode_text(found) @ encode_text([prompt])[0]
        for substitute, value in zip(rows[-1].values(), similarity.tolist(), strict=True):
            likeness[substitute].append(value)

    def rank(substitute: frozenset[str]) -> tuple[int, float]:
        return len(likeness[substitute]), fmean(likeness[substitute])

    anchors = []
    for prompt, row in zip(prompts, rows, strict=True):
        named = sum(contains_concept(prompt, concept, corpus) for concept in concepts)
        most = MAX_ANCHORS**2 if named > 1 else MAX_ANCHORS
        anchors.append(sorted(row, key=lambda text: rank(row[text]), reverse=True)[:most])
    return anchors


def in_its_place(spec: ConceptSpec, count: int) -> list[str]:
    """At most `count` forget prompts with other names of the bundled vocabularies in the concept's place,
    spread over all of them.

    Names that share a word with a concept's are left out, and so are prompts that do not say the concept's
    name as it was given.
    """
    own = [set(words(plain_name(concept))) for concept in spec.concepts]
    wanted, found = count // len(spec.concepts), list[str | None]()
    for concept, kind in zip(spec.concepts, spec.kinds, strict=False):  # a user's spec may tell no kinds
        listed = vocabulary("safe" if kind == "unsafe" else kind)
        names = [name for name in listed if not any(o & set(words(name)) for o in own)]
        saying = [prompt for prompt in spec.forget_prompts if with_other(prompt, concept, "") is not None]
        if saying and wanted:
            spread = names[:: max(1, len(names) // wanted)][:wanted]
            found += [with_other(prompt, concept, name) for prompt, name in zip(cycle(saying), spread)]
    known = set(map(folded, [*spec.forget_prompts, *spec.retain_prompts]))
    return [prompt for prompt in dict.fromkeys(found) if prompt and folded(prompt) not in known]


def neighbours_of(
    concept: str, kind: str, concepts: Sequence[str], encode_text: TextEncoder
) -> tuple[list[str], list[str]]:
    """Names of the concept's kind that are nearest to it, nearest first, and apart from them those too near
    to be told from it.

    What an unsafe concept stands beside are safe things. Names that hold a concept's distinctive words, or
    are part of its name, are the concept.
    """
    taken = [distinctive_words(c, []) for c in concepts]
    own = [set(words(plain_name(c))) for c in concepts]
    listed = [(name, set(words(name))) for name in vocabulary("safe" if kind == "unsafe" else kind)]
    names = [name for name, w in listed if not any(t <= w or w <= o for t, o in zip(taken, own, strict=True))]
    names, too_near = apart_from([plain_name(concept)], names, encode_text)
    order = (encode_text(names) @ encode_text([plain_name(concept)])[0]).argsort(descending=True)
    return [names[i] for i in order[:NEIGHBOURS].tolist()], too_near


def apart_from(meant: list[str], texts: list[str], encode_text: TextEncoder) -> tuple[list[str], list[str]]:
    """`texts` divided into those one can tell from all of `meant`, in their order, and those that mean nearly
    the same, nearest first.

    The measure is the texts' own: the median distance of a text to its nearest neighbour.
    """
    if len(texts) < 2 or not meant:
        return texts, []
    embeds = encode_text(texts)
    usual = (1 - embeds @ embeds.T).fill_diagonal_(torch.inf).amin(dim=1).median()
    distance = (1 - embeds @ encode_text(meant).T).amin(dim=1)
    same = [i for i in distance.argsort().tolist() if distance[i] < CONFUSABLE * usual]
    return [text for i, text in enumerate(texts) if i not in same], [texts[i] for i in same]


def choose_retain(
    forget_prompts: list[str], wanted: list[str], candidates: list[str], count: int, encode_text: TextEncoder
) -> list[str]:
    """`wanted`, then the candidates nearest to the forget prompts until half of `count` is filled, then by
    farthest-point sampling.

    The candidates keep their order; all of them are taken if there are no more than `count` in all.
    """
    pool = list(dict.fromkeys([*candidates, *wanted]))
    if len(pool) <= count:
        return pool
    embeds = encode_text(pool)
    nearest = (embeds @ encode_text(forget_prompts).T).amax(dim=1).argsort(descending=True).tolist()
    index = {prompt: i for i, prompt in enumerate(pool)}
    chosen = [index[p] for p in wanted][:count]
    chosen += [i for i in nearest if i not in set(chosen)][: max(0, count // 2 - len(chosen))]
    covered = (embeds @ embeds[chosen].T).amax(dim=1)
    while len(chosen) < count:
        farthest = int(covered.argmin())
        chosen.append(farthest)
        covered = torch.maximum(covered, embeds @ embeds[farthest])
    return [pool[i] for i in sorted(chosen)]
