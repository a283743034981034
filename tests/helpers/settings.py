"""Settings."""

from batchfile.settings import Settings, explain_settings, load_settings
from batchfile.settings_built_in import DEFAULT_POOLS
from batchfile.settings_tables import Api, LocalRun, MediaAccess, PoolSettings, Webhook
