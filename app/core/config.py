"""Every setting of the product, read once from the environment (prefix GPT_BUILDER_) and .env."""

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent.parent


class Settings(BaseSettings):
    """Times in seconds, sizes in bytes. Unset addresses mean the embedded parts below `home`."""

    model_config = SettingsConfigDict(env_prefix="GPT_BUILDER_", env_file=".env", extra="ignore")

    home: Path = Path("var")
    role: Literal["all", "web", "stream"] = "all"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    allowed_hosts: list[str] = Field(default_factory=lambda: ["localhost", "127.0.0.1", "[::1]"])
    trusted_proxies: list[str] = Field(default_factory=list)
    is_https: bool = False
    is_development: bool = False
    log_json: bool = False

    database_url: str = ""
    redis_url: str = Field("", description="with the web user's rights")
    redis_url_worker: str = Field("", description="with the queue's rights; empty: redis_url")
    redis_url_stream: str = Field("", description="read-only rights; empty: redis_url")
    storage_url: str = Field("", description="fsspec URL of finished artefacts; empty: a folder below home")
    model_server_socket: Path | None = None
    secret_file: Path | None = None

    upload_limit_bytes: int = 50 * 10**9
    disk_reserve_bytes: int = 2 * 2**30
    session_idle_s: int = 12 * 3600
    session_absolute_s: int = 14 * 24 * 3600
    lease_heartbeat_s: float = 15
    lease_ttl_s: float = 120
    lease_self_stop_s: float = 90
    reconcile_every_s: float = 5
    stream_age_limit_s: float = 600
    stop_grace_s: float = 20
    drain_grace_s: float = 150
    hang_s: float = 600
    runs_per_workspace: int = 4
    torch_index: str = ""
    hub_endpoint: str = Field("", description="empty: the Hugging Face hub")
    fetch_networks: list[str] = Field(default_factory=list, description="private networks that people may fetch from")
    smtp_url: str = Field("", description="mail server for notices: smtp://user:password@host:587; empty: no e-mail")
    mail_from: str = Field("", description="sender of e-mails")
    fetch_delay_s: float = Field(0.5, ge=0, description="between two pages of a web site")
    model_folders: list[Path] = Field(
        default_factory=list, description="where local base models may lie, beside models/ in home"
    )
    energy_price_kwh: float | None = Field(None, ge=0, description="what a kilowatt hour costs, for estimates")
    device_price_hour: float | None = Field(None, ge=0, description="what an hour of the training device costs")
    currency: str = Field("€", max_length=5)
    probe_s: float = Field(8.0, ge=0, description="how long quick steps are repeated when a recipe is measured")
    rates_s: float = Field(60.0, ge=0, description="how long learning rates are tried, all together")
    threads: int | None = None
    answer_precision: Literal["fp32", "bf16", "int8"] = Field(
        "fp32", description="number format of answers on a CPU; int8 only for models whose accuracy stays"
    )
    answer_compiled: bool = Field(
        True,
        description="compile passes of answers for this processor: ten seconds once, answers two to four times faster",
    )
    model_server: Literal["auto", "own", "vllm"] = Field(
        "auto", description="engine of answers; auto: vLLM where it answers at vllm_url, else our own"
    )
    vllm_url: str = Field("", description="where a vLLM server answers, such as http://127.0.0.1:8001")
    vllm_key: str = Field("", description="the --api-key of that server")
    data_processes: int | None = Field(None, ge=1, description="that prepare data; empty: two where there are cores")

    @property
    def home_dir(self) -> Path:
        """The home as an absolute path."""
        return self.home.expanduser().resolve()

    @property
    def database(self) -> str:
        """SQLAlchemy URL: the given one, or SQLite below home."""
        return self.database_url or f"sqlite:///{self.home_dir / 'gpt-builder.db'}"

    @property
    def storage(self) -> str:
        """fsspec URL of the place for finished artefacts."""
        return self.storage_url or f"file://{self.home_dir / 'storage'}"

    @property
    def server_socket(self) -> Path:
        """Unix socket of the model server."""
        return self.model_server_socket or self.home_dir / "sockets" / "model.sock"

    @property
    def vllm_address(self) -> str:
        """Of the vLLM server that answers for its models; empty: our own engine answers for all."""
        return self.vllm_url if self.model_server != "own" else ""

    @property
    def secrets_path(self) -> Path:
        """Key file for tokens and encrypted secrets, made on first use with mode 0600."""
        return self.secret_file or self.home_dir / "secret.key"


@lru_cache
def get_settings() -> Settings:
    """The settings of this process. Tests clear the cache after changing the environment."""
    return Settings()
