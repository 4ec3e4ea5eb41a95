"""Models of random weights for the measurements of serving: Llama shapes, a tokenizer of our own, adapters."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Layers, width, middle, heads, key heads: about 15 and 135 million weights with a vocabulary of 8,192.
SHAPES = {"15M": (8, 320, 960, 5, 5), "135M": (30, 576, 1536, 9, 3)}
VOCABULARY, CONTEXT, RANK, ADAPTERS = 8192, 4096, 16, 4


def make(folder: Path, shape: tuple[int, ...]) -> Path:
    """A Llama of random weights with a tokenizer of our own, learned from the shipped Shakespeare."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from app.text.template import CHATML
    from worker.engine import tokenizer as own

    layers, width, middle, heads, key_heads = shape
    torch.manual_seed(0)
    tokenizer = own.train_bpe(iter([shakespeare()[:200_000]]), 1024)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=width, intermediate_size=middle, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=key_heads, max_position_embeddings=CONTEXT,
        bos_token_id=None, eos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", chat_template=CHATML)
    fast.save_pretrained(folder)
    return folder


def make_adapters(base: Path, home: Path, count: int) -> list[Path]:
    """Adapters of random weights on every linear layer but the head."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    peft, folders = get_peft_model(model, config), []
    for number in range(count):
        torch.manual_seed(number)
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        folders.append(home / f"adapter{number}")
        peft.save_pretrained(str(folders[-1]))
    return folders


def shakespeare() -> str:
    """The shipped plays, as one text."""
    return (ROOT / "app/datasets/samples/shakespeare.txt").read_text(encoding="utf-8")
