"""Names of languages by their code, for pages. A code that is not here is shown as it is."""

LANGUAGES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "pt": "Portuguese",
    "nl": "Dutch", "pl": "Polish", "ru": "Russian", "tr": "Turkish", "zh": "Chinese", "zh-Hant": "Chinese",
    "ja": "Japanese", "ko": "Korean", "ar": "Arabic", "hi": "Hindi", "bn": "Bengali", "sv": "Swedish", "da": "Danish",
    "no": "Norwegian", "fi": "Finnish", "cs": "Czech", "el": "Greek", "iw": "Hebrew", "he": "Hebrew", "uk": "Ukrainian",
    "hu": "Hungarian", "ro": "Romanian", "id": "Indonesian", "vi": "Vietnamese", "th": "Thai", "fa": "Persian",
}  # fmt: skip
