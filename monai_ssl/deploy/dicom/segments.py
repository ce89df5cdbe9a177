"""What a segment is called in DICOM: codes, category, modifier, color."""

from __future__ import annotations

import colorsys
import re
from typing import Any

from monai_ssl.data.preset import Preset
from monai_ssl.dicom.values import plain
from monai_ssl.reports.figures import CLASS_COLORS

SCHEME = "99MONAISSL"  # private; designators that begin with 99 are free for local use
Triple = tuple[str, str, str]
ANATOMY: Triple = ("91723000", "SCT", "Anatomical Structure")
CATEGORIES: dict[str, Triple] = {
    r"tumou?rs?|lesions?|metasta\w*|cancers?|carcinomas?|sarcomas?|gliomas?|neoplasms?|nodules?|mass|polyps?|cysts?"
    r"|o?edema|necro\w+|infarct\w*|strokes?|isch?a?emi\w*|ha?emorrhages?|ha?ematomas?|plaques?|aneurysms?|thromb\w+"
    r"|scars?|fibrosis|abscess(es)?|consolidations?|effusions?|hyperintensit\w+|wmh|enhancing|fractures?": (
        "49755003", "SCT", "Morphologically Abnormal Structure"),  # CID 7150
    r"catheters?|stents?|implants?|electrodes?|needles?|screws?|leads?|pacemakers?|clips?": (
        "260787004", "SCT", "Physical object"),
}  # fmt: skip
LATERALITY: dict[str, Triple] = {
    "left": ("7771000", "SCT", "Left"),
    "right": ("24028007", "SCT", "Right"),
    "bilateral": ("51440002", "SCT", "Right and left"),
}
TOPOGRAPHY: dict[str, Triple] = {
    "anterior": ("255549009", "SCT", "Anterior"),
    "posterior": ("255551008", "SCT", "Posterior"),
    "superior": ("264217000", "SCT", "Superior"),
    "inferior": ("261089000", "SCT", "Inferior"),
    "medial": ("255561001", "SCT", "Medial"),
    "lateral": ("49370004", "SCT", "Lateral"),
    "proximal": ("40415009", "SCT", "Proximal"),
    "distal": ("46053002", "SCT", "Distal"),
    "central": ("26216008", "SCT", "Central"),
    "peripheral": ("14414005", "SCT", "Peripheral"),
}
GOLDEN = 0.618034


def segment_code(preset: Preset, index: int) -> Triple:
    """Code of a class: the preset's, else a private one with the class's name.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> segment_code(load_preset("left_atrium"), 1)
        ('82471001', 'SCT', 'Left atrium')
    """
    if index in preset.codes:
        value, scheme, meaning = preset.codes[index]
        return value, scheme, plain(meaning)
    return f"CLASS-{index}", SCHEME, plain(preset.labels[index])


def segment_modifiers(preset: Preset, index: int) -> list[Triple]:
    """What tells a class from others of the same code: side and place by the words of its name, else its name.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> preset = load_preset("hippocampus")
        >>> [segment_modifiers(preset, index)[0][2] for index in (1, 2)]
        ['Anterior', 'Posterior']
    """
    code = segment_code(preset, index)
    twins = [other for other in preset.labels if other and segment_code(preset, other)[:2] == code[:2]]
    if len(twins) == 1:
        return []
    found = {other: _by_words(preset.labels[other]) for other in twins}
    own = found.pop(index)
    if own and own not in found.values():
        return own
    return [(f"CLASS-{index}", SCHEME, plain(preset.labels[index]))]


def _by_words(name: str) -> list[Triple]:
    words = set(re.split(r"[^a-z]+", name.lower()))
    return [code for table in (LATERALITY, TOPOGRAPHY) for word, code in table.items() if word in words]


def segment_category(preset: Preset, index: int) -> Triple:
    """Anatomy, unless the class's name or meaning says that it is something abnormal or an object.

    Example:
        >>> from monai_ssl.data import load_preset
        >>> segment_category(load_preset("left_atrium"), 1)[2]
        'Anatomical Structure'
    """
    text = f"{preset.labels[index]} {segment_code(preset, index)[2]}".lower().replace("_", " ")
    for pattern, category in CATEGORIES.items():
        if re.search(rf"\b({pattern})\b", text):
            return category
    return ANATOMY


def segment_color(index: int) -> tuple[int, int, int]:
    """Red, green, blue of a class, 0 to 255: as the reports' pictures have it, then further ones; all are different.

    Example:
        >>> segment_color(1)
        (86, 180, 233)
    """
    if index <= len(CLASS_COLORS):
        text = CLASS_COLORS[index - 1].lstrip("#")
        return int(text[:2], 16), int(text[2:4], 16), int(text[4:], 16)
    # hues apart by the golden section; lightness and saturation change from round to round
    turn = index - len(CLASS_COLORS)
    rgb = colorsys.hls_to_rgb(turn * GOLDEN % 1, 0.35 + 0.1 * (turn % 4), 0.6 + 0.1 * (turn % 5))
    return round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)


def describe_segments(preset: Preset, model: str, version: str, uid: Any) -> list[Any]:
    """One description per class.

    Args:
        preset: names and codes.
        model: name of the algorithm.
        version: of the algorithm.
        uid: gives the unique identifier of a purpose.
    """
    import highdicom as hd
    from pydicom.sr.coding import Code

    algorithm = hd.AlgorithmIdentificationSequence(
        name=plain(model), version=plain(version), family=Code("113076", "DCM", "Segmentation"))  # fmt: skip
    segments = []
    for index, name in preset.labels.items():
        if not index:
            continue
        segment = hd.seg.SegmentDescription(
            segment_number=index,
            segment_label=plain(name),
            segmented_property_category=Code(*segment_category(preset, index)),
            segmented_property_type=Code(*segment_code(preset, index)),
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
            tracking_uid=uid(f"segment {index}"),
            tracking_id=plain(f"{index} {name}"),
            display_color=hd.color.CIELabColor.from_rgb(*segment_color(index)),
        )
        if modifiers := segment_modifiers(preset, index):
            kind = segment.SegmentedPropertyTypeCodeSequence[0]
            kind.SegmentedPropertyTypeModifierCodeSequence = [
                hd.sr.CodedConcept.from_code(Code(*code)) for code in modifiers
            ]
        segments.append(segment)
    return segments
