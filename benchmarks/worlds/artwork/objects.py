"""Which objects are drawn, and what they are called: a rule over CLDR's data, no list picked by hand.

An object is an emoji
- of a group of concrete things (GROUPS) and no subgroup of LEFT_OUT, whose members differ only in detail
  (clock faces, banknotes, envelopes, charts), are views rather than things, or are places of worship; and
  without a tag of LEFT_OUT_TAGS, whose drawings differ more from set to set than from each other;
- that every style draws;
- whose name is one or two lower-case words, is one thing's (no plural, no participle) and takes "a", so that
  one wording, "a {object} in {style} style", is right for all;
- whose name neither contains another object's ("cat face", "fire engine") nor ends as an earlier one's
  ("green book", "blue book"), and that CLDR does not tag with the name of an earlier object of its subgroup
  ("minibus" with "bus", "leopard" with "cat", "fog" with "cloud"): such things look almost alike;
- whose name is no tag of many others of its subgroup: "bird" is a category.

Of these `choose` takes the same number from each of the largest subgroups, so that everything has neighbours.
Synonyms and categories are tags, unedited; a tag is taken or left.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.worlds.artwork.packages import ArtworkError, Entry, IconSet

GROUPS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")
LEFT_OUT = ("time", "money", "mail", "office", "place-map", "place-other", "place-religious")
LEFT_OUT_TAGS = ("railway",)
PER_SUBGROUP = 6
"""Objects of each subgroup, where it has as many and more are not needed."""
NEIGHBOURS = 2
"""Others of its subgroup that each object has at least."""
CATEGORY_MEMBERS = 6
"""Objects that share a category at least."""
COLOURS = ("white", "grey", "pink", "red", "orange", "yellow", "green", "blue", "purple")
"""What captions call backgrounds, and therefore no object (CLDR calls a taxi "yellow")."""
SAME_CATEGORY = 0.75
"""Members in common, of the members of either, above which two categories are one."""
MANY_TAGS = 7
"""Beyond this number CLDR's tags are what people search by (a rainbow has 17), and none is a synonym."""


@dataclass(frozen=True)
class ArtObject:
    """Something that every style draws.

    Attributes:
        name: CLDR's.
        synonyms: tags that mean no other object; may be empty.
        categories: tags that it shares with at least CATEGORY_MEMBERS - 1 others.
        icons: the drawing's name in each style's set.
    """

    name: str
    synonyms: tuple[str, ...]
    categories: tuple[str, ...]
    group: str
    subgroup: str
    hexcode: str
    icons: Mapping[str, str]


@dataclass(frozen=True)
class Drawn:
    """An emoji that every style draws, by the names of its drawings."""

    entry: Entry
    icons: Mapping[str, str]


def choose(entries: Sequence[Entry], sets: Mapping[str, IconSet], count: int) -> tuple[ArtObject, ...]:
    """`count` objects in CLDR's order.

    In a subgroup those come first whose name is one word, then those that its commonest tag is said of, then
    those with a synonym. Subgroups are taken in the order of how many of the first kind they have,
    PER_SUBGROUP objects each, or as many more as it takes to find `count` in all.

    Args:
        entries: all of CLDR, in its order.
        sets: drawings by style.

    Raises:
        ArtworkError: there are not that many.
    """
    concrete = [entry for entry in entries if entry.group in GROUPS]
    found = defaultdict(list)
    for drawn in apart(eligible(concrete, sets)):
        found[drawn.entry.subgroup].append(drawn)
    ranked = [_ranked(drawn, concrete) for drawn in found.values() if len(drawn) > NEIGHBOURS]
    # The sort is stable: equally large ones stay in CLDR's order.
    ranked.sort(
        key=lambda subgroup: sum(_is_typical(drawn, commonest_tag(subgroup)) for drawn in subgroup),
        reverse=True,
    )
    shares = share_out([len(subgroup) for subgroup in ranked], count)
    if shares is None:
        raise ArtworkError(
            f"{count} objects cannot be chosen: all of {', '.join(sets)} draw {sum(map(len, ranked))} that follow "
            f"the rule, and each is to have {NEIGHBOURS} neighbours."
        )
    chosen = [drawn for subgroup, n in zip(ranked, shares, strict=True) for drawn in subgroup[:n]]
    places = {entry.hexcode: i for i, entry in enumerate(concrete)}
    return described(sorted(chosen, key=lambda drawn: places[drawn.entry.hexcode]), concrete)


def share_out(sizes: Sequence[int], count: int) -> list[int] | None:
    """How many to take of each subgroup so that there are `count`; None if it cannot be.

    The first subgroups give PER_SUBGROUP, or as many more as it takes; what is too much by then is taken from
    those that give most, the last first. None gives so few that one would lack neighbours.
    """
    if count > sum(sizes) or count <= NEIGHBOURS:
        return None
    each = next(
        n for n in range(PER_SUBGROUP, count + PER_SUBGROUP) if sum(min(n, s) for s in sizes) >= count
    )
    shares = [0] * len(sizes)
    for i, size in enumerate(sizes):
        if sum(shares) < count:
            shares[i] = min(each, size)
    while sum(shares) > count:
        most = max(shares)
        if most <= NEIGHBOURS + 1:
            return None
        shares[max(i for i, share in enumerate(shares) if share == most)] -= 1
    return shares


def _ranked(subgroup: Sequence[Drawn], concrete: Sequence[Entry]) -> list[Drawn]:
    commonest = commonest_tag(subgroup)
    return sorted(
        subgroup,
        key=lambda drawn: (
            " " in drawn.entry.name,
            commonest not in drawn.entry.tags,
            not synonyms(drawn.entry, concrete),
        ),
    )


def commonest_tag(subgroup: Sequence[Drawn]) -> str:
    """The tag that most of them have, of equals the first in CLDR's order; empty if there is none."""
    tags = Counter(tag for drawn in subgroup for tag in drawn.entry.tags)
    return max(tags, key=lambda tag: tags[tag], default="")


def _is_typical(drawn: Drawn, commonest: str) -> bool:
    return " " not in drawn.entry.name and commonest in drawn.entry.tags


# --- which are eligible ---------------------------------------------------------------------------------


def eligible(concrete: Sequence[Entry], sets: Mapping[str, IconSet]) -> list[Drawn]:
    """Those whose name will do and that every style draws."""
    named = [
        entry
        for entry in concrete
        if entry.subgroup not in LEFT_OUT
        and set(LEFT_OUT_TAGS).isdisjoint(entry.tags)
        and is_plain(entry.name)
    ]
    return [drawn for entry in named if (drawn := find_icons(entry, sets))]


def is_plain(name: str) -> bool:
    """Whether it is one or two lower-case words for one thing, and takes "a"."""
    words = name.split()
    return (
        1 <= len(words) <= 2
        and all(re.fullmatch("[a-z]+", word) and is_one_thing(word) for word in words)
        and name[0] not in "aeiou"
    )


def is_one_thing(word: str) -> bool:
    """Whether it looks like a noun in the singular: "glass" and "ring" do; "grapes", "locked", "bowling" and
    "dangerous" do not."""
    plural = word.endswith("s") and not word.endswith(("ss", "us"))
    return not plural and not (len(word) > 4 and word.endswith(("ing", "ed", "ous", "ful", "able")))


def find_icons(entry: Entry, sets: Mapping[str, IconSet]) -> Drawn | None:
    """Its drawings, by code point in the sets that say, by name in the others; None if a style lacks it."""
    code = entry.hexcode.lower()
    codes = (code, code.replace("-fe0f", ""))
    known = [icons.by_code[c] for icons in sets.values() for c in codes if c in icons.by_code]
    names = [re.sub("[^a-z0-9]+", "-", entry.name.lower()), *known]
    found = {}
    for style, icons in sets.items():
        own = [icons.by_code[c] for c in codes if c in icons.by_code]
        name = icons.find(own if icons.by_code else names)
        if name is None:
            return None
        found[style] = name
    return Drawn(entry, found)


def apart(drawn: Sequence[Drawn]) -> list[Drawn]:
    """Those that are not what many others of the subgroup are, no variant of another, by name, and no kind of
    an earlier one of the subgroup, by tags."""
    said = Counter((d.entry.subgroup, tag) for d in drawn for tag in d.entry.tags)
    drawn = [d for d in drawn if said[d.entry.subgroup, d.entry.name] < CATEGORY_MEMBERS]
    names = {d.entry.name for d in drawn}
    kept: list[Drawn] = []
    last_words, earlier = set(), set()
    for d in drawn:
        words = d.entry.name.split()
        variant = len(words) > 1 and (not names.isdisjoint(words) or words[-1] in last_words)
        if variant or any((d.entry.subgroup, tag) in earlier for tag in d.entry.tags):
            continue
        last_words.add(words[-1])
        earlier.add((d.entry.subgroup, d.entry.name))
        kept.append(d)
    return kept


# --- what they are called -------------------------------------------------------------------------------


def described(chosen: Sequence[Drawn], concrete: Sequence[Entry]) -> tuple[ArtObject, ...]:
    """The chosen with their synonyms and categories."""
    names = {word for d in chosen for word in (d.entry.name, *d.entry.name.split())}
    categories = shared_tags(chosen) - names
    return tuple(
        ArtObject(
            d.entry.name,
            tuple(tag for tag in synonyms(d.entry, concrete) if tag not in names),
            tuple(tag for tag in d.entry.tags if tag in categories),
            d.entry.group,
            d.entry.subgroup,
            d.entry.hexcode,
            d.icons,
        )
        for d in chosen
    )


def shared_tags(chosen: Sequence[Drawn]) -> set[str]:
    """Tags that are categories.

    At least CATEGORY_MEMBERS of the chosen have one, and half of the chosen of some subgroup: it is what CLDR
    says of the kind ("animal", "fruit") and not of scattered things ("farm", "zodiac"). Of two that say
    nearly the same ("dessert", "sweet") the first in the alphabet is taken.
    """
    members = defaultdict(set)
    for i, d in enumerate(chosen):
        for tag in filter(is_word, d.entry.tags):
            members[tag].add(i)
    found: set[str] = set()
    for tag in sorted(members):
        having = members[tag]
        kinds = {chosen[i].entry.subgroup for i in having}
        shares = (2 * len(having & _those_of(kind, chosen)) >= len(_those_of(kind, chosen)) for kind in kinds)
        if len(having) >= CATEGORY_MEMBERS and any(shares):
            alike = (len(having & members[t]) / len(having | members[t]) for t in found)
            if max(alike, default=0) <= SAME_CATEGORY:
                found.add(tag)
    return found


def _those_of(subgroup: str, chosen: Sequence[Drawn]) -> set[int]:
    return {i for i, d in enumerate(chosen) if d.entry.subgroup == subgroup}


def synonyms(entry: Entry, concrete: Sequence[Entry]) -> list[str]:
    """Tags that mean this object and no other concrete thing, but for variants of it, such as "cat face"."""
    if len(entry.tags) > MANY_TAGS:
        return []
    own = entry.name.split()
    return [
        tag
        for tag in entry.tags
        if is_word(tag)
        and is_one_thing(tag)
        and tag not in own
        and tag not in COLOURS
        and all(other is entry or tag not in _said(other) or entry.name in _said(other) for other in concrete)
    ]


def is_word(tag: str) -> bool:
    """Whether it is a word of at least three letters."""
    return re.fullmatch("[a-z]{3,}", tag) is not None


def _said(entry: Entry) -> set[str]:
    return {*entry.tags, *entry.name.split(), entry.name}
