"""The names of classes: eight emotions, CelebA's 40 attributes and their groups, and what other programs call them."""

from __future__ import annotations

from collections.abc import Mapping

#: In the order of the alphabet; the classes of FER+ (Barsoum et al. 2016), of which other sets use some.
EMOTIONS = ("anger", "contempt", "disgust", "fear", "happiness", "neutral", "sadness", "surprise")

#: Other words for them, in lower case: FER2013, AffectNet, DeepFace, HSEmotion, CK+, RAF-DB, KDEF.
EMOTION_WORDS: Mapping[str, str] = {
    "angry": "anger",
    "contemptuous": "contempt",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "surprised": "surprise",
    "neutrality": "neutral",
}

#: CelebA's attributes (Liu et al. 2015), in the order of its file.
ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses", "Goatee",
    "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes", "No_Beard",
    "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling", "Straight_Hair",
    "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace", "Wearing_Necktie", "Young",
)  # fmt: skip

#: Every attribute is in exactly one group; the groups are those in which the GANonymization paper tells its results.
ATTRIBUTE_GROUPS: Mapping[str, tuple[str, ...]] = {
    "hair": (
        "5_o_Clock_Shadow", "Bald", "Bangs", "Black_Hair", "Blond_Hair", "Brown_Hair", "Goatee", "Gray_Hair", "Mustache",
        "No_Beard", "Receding_Hairline", "Sideburns", "Straight_Hair", "Wavy_Hair",
    ),
    "accessories": ("Eyeglasses", "Wearing_Earrings", "Wearing_Hat", "Wearing_Necklace", "Wearing_Necktie"),
    "makeup": ("Heavy_Makeup", "Rosy_Cheeks", "Wearing_Lipstick"),
    "expression": ("Mouth_Slightly_Open", "Narrow_Eyes", "Smiling"),
    "face shape": (
        "Arched_Eyebrows", "Bags_Under_Eyes", "Big_Lips", "Big_Nose", "Bushy_Eyebrows", "Chubby", "Double_Chin",
        "High_Cheekbones", "Oval_Face", "Pointy_Nose",
    ),
    "age and sex": ("Male", "Young"),
    "other": ("Attractive", "Blurry", "Pale_Skin"),
}  # fmt: skip


def emotion(word: str) -> str | None:
    """The class that a data set or program calls ``word``, whatever its case; None for one that is none of ours."""
    w = word.strip().lower()
    return w if w in EMOTIONS else EMOTION_WORDS.get(w)
