"""Settings."""

from batchfile.settings import DEFAULT_POOLS, Settings, explain_settings, load_settings
from batchfile.settings_tables import Api, LocalRun, MediaAccess, PoolSettings, Webhook
