"""Which keys of a config cannot matter: when runs are compared, and when one is resumed."""

# What changes nothing that is learned or measured: where files are, what is shown, how images are held.
WITHOUT_EFFECT = (
    *("study", "resume", "overrides", "swept", "choices", "sweep", "logger"),
    *("callbacks.figures", "callbacks.checkpoint", "callbacks.diagnostics"),
    *("data.url", "data.md5", "data.cache", "data.in_memory", "data.num_workers"),
    *("trainer.default_root_dir", "trainer.enable_progress_bar", "trainer.enable_model_summary"),
    *("trainer.log_every_n_steps", "trainer.profiler", "trainer.enable_autolog_hparams"),
    "trainer.detect_anomaly",
)
