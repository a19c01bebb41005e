"""What a person can choose among; known without torch, which takes seconds to load."""

FAMILIES = ("llama", "phi3", "qwen2")
OPTIMIZERS = ("adamw", "muon")
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 576,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 12_288,
    "rope_theta": 10_000.0,
}
