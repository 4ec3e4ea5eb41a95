"""The words of the field in two plain sentences each, shown where they appear (`ui.term`)."""

TERMS: dict[str, tuple[str, str]] = {
    "training_loss": (
        "Training loss",
        "How surprised the model is by the examples it learns from. Lower is better; it falls as "
        "the model learns them.",
    ),
    "validation_loss": (
        "Validation loss",
        "The same surprise, on rows the model never trains on. When it stops falling, more training no longer helps.",
    ),
    "validation_accuracy": (
        "Next tokens guessed right",
        "Of the tokens in rows it never trains on, the share that the model would have written itself. An answer of "
        "several tokens is right only if all of them are, so fewer answers are right than tokens.",
    ),
    "hesitates": (
        "Hesitates between",
        "Among how many equally likely next words the model would have to guess. It is e to the "
        "power of the loss; fewer is better.",
    ),
    "perplexity": (
        "Perplexity",
        "e to the power of the loss: as if the model chose each time among so many equally likely "
        "tokens. Lower is better.",
    ),
    "token": (
        "Token",
        "The pieces that a model reads and writes: whole short words, parts of longer ones, or "
        "single signs. In English 100 tokens are about 75 words.",
    ),
    "learning_rate": (
        "Learning rate",
        "How large each correction is. Too high and learning breaks, too low and it takes for ever.",
    ),
    "preference_accuracy": (
        "Pairs told rightly apart",
        "The share of pairs in which the model has come to prefer the better answer, compared with where it began. "
        "Guessing would be a half.",
    ),
    "preference_margin": (
        "Margin",
        "By how much more the preferred answer has become likelier than the rejected one, times beta. 0 at the start; "
        "larger is clearer, but very large means that it moved far from its base.",
    ),
    "gradient_norm": (
        "Gradient norm",
        "How strongly the examples pull at the weights in one step. A sudden rise is an early sign of trouble.",
    ),
    "checkpoint": (
        "Checkpoint",
        "The whole state of the model at one step, saved on disk. Training can go on from it, and "
        "you can chat with it.",
    ),
    "step": (
        "Step",
        "One correction of the weights, made after reading one batch of rows.",
    ),
    "batch": (
        "Batch",
        "The rows that are read together before one correction. Larger is steadier and needs more memory.",
    ),
    "lora": (
        "LoRA",
        "A small set of extra weights is trained beside the model, which itself stays as it is. "
        "Quick, light on memory, and hard to spoil.",
    ),
    "base_model": (
        "Base model",
        "The model you start from. It already knows language; training teaches it your material.",
    ),
    "early_stopping": (
        "Early stopping",
        "Training ends by itself when validation loss has not improved for a while. The best checkpoint is kept.",
    ),
    "split": (
        "Split",
        "Your rows in three parts: training rows to learn from, validation rows to watch while it "
        "learns, and test rows for the final exam.",
    ),
    "interval": (
        "95 % interval",
        "With other test rows of the same kind the result would lie in this range 19 times out of "
        "20. Few rows make it wide.",
    ),
    "token_f1": (
        "Token F1",
        "How many words the answer and the ideal answer share, from 0 to 1. Order does not count.",
    ),
    "temperature": (
        "Creativity (temperature)",
        "How freely the next word is chosen. At 0 always the likeliest; higher is more varied and more often wrong.",
    ),
    "context": (
        "Memory (context)",
        "How many tokens the model can look at together: your question, what came before, its answer.",
    ),
    "system_prompt": (
        "System prompt",
        "An instruction that goes before every conversation: who the model is and how it should behave.",
    ),
    "epoch": (
        "Epoch",
        "One pass through all training rows. Small data sets need several, large ones often one.",
    ),
    "adapter": (
        "Adapter",
        "The small extra weights that LoRA learns. It is laid over the base model when it answers.",
    ),
    "tokenizer": (
        "Tokenizer",
        "Cuts text into tokens and puts it together again. Each base model has its own.",
    ),
    "exact_match": (
        "Exact match",
        "The share of answers that equal the ideal answer, apart from case and spaces.",
    ),
    "rouge_l": (
        "ROUGE-L",
        "The longest run of words, in order, that answer and ideal answer share, from 0 to 1.",
    ),
}
