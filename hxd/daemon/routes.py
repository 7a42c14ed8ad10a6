"""The route table: every route, with the role that it needs. What is not here is not served."""

from __future__ import annotations

from hxd.daemon.admin.api import AdminApi
from hxd.daemon.admin.config_api import ConfigApi
from hxd.daemon.admin.plugin_api import PluginApi
from hxd.daemon.admin.rollout_api import RolloutApi
from hxd.daemon.admin.store_api import StoreApi
from hxd.daemon.request.embed import Embeddings
from hxd.daemon.request.feedback import Feedback
from hxd.daemon.request.generate import Generation
from hxd.daemon.request.http import Entry
from hxd.daemon.request.identify import Role
from hxd.daemon.request.tokenize import Tokenization


def routes(
    generation: Generation,
    embeddings: Embeddings,
    tokenization: Tokenization,
    feedback: Feedback,
    admin: AdminApi,
    rollout: RolloutApi,
    store: StoreApi,
) -> list[Entry]:
    user, read, operate, rule = Role.INFERENCE, Role.METRICS, Role.OPERATOR, Role.ADMIN
    return [
        Entry("POST", "/v1/chat/completions", user, generation.chat, work=True),
        Entry("POST", "/v1/completions", user, generation.complete, work=True),
        Entry("POST", "/v1/embeddings", user, embeddings.embeddings, work=True),
        Entry("POST", "/v1/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/v2/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/rerank", user, embeddings.rerank, work=True),
        Entry("POST", "/tokenize", user, tokenization.tokenize, work=True),
        Entry("POST", "/detokenize", user, tokenization.detokenize, work=True),
        Entry("POST", "/v1/feedback", user, feedback.say),
        Entry("GET", "/v1/models", user, admin.models),
        Entry("GET", "/v1/models/{id:.+}", user, admin.model),
        Entry("GET", "/livez", None, admin.livez),
        Entry("GET", "/readyz", None, admin.readyz),
        Entry("GET", "/health", read, admin.health),
        Entry("GET", "/metrics", read, admin.metrics),
        Entry("GET", "/admin/v1/status", operate, admin.status),
        Entry("GET", "/admin/v1/models", operate, admin.admin_models),
        Entry("GET", "/admin/v1/replicas", operate, admin.replicas),
        Entry("GET", "/admin/v1/conditions", operate, admin.conditions),
        Entry("POST", "/admin/v1/drill", operate, admin.drill, work=True),
        Entry("GET", "/admin/v1/events", operate, rollout.events),
        Entry("GET", "/admin/v1/rollouts", operate, rollout.list),
        Entry("POST", "/admin/v1/rollouts", operate, rollout.begin),
        Entry("POST", "/admin/v1/rollback", operate, rollout.roll_back),
        Entry("POST", "/admin/v1/promote", operate, rollout.promote),
        Entry("GET", "/admin/v1/store", operate, store.models),
        Entry("GET", "/admin/v1/store/show", operate, store.show),
        Entry("GET", "/admin/v1/store/snapshots", operate, store.snapshots),
        Entry("POST", "/admin/v1/store/import", rule, store.take_in, work=True),
        Entry("POST", "/admin/v1/store/pull", rule, store.pull, work=True),
        Entry("POST", "/admin/v1/store/rm", rule, store.remove, work=True),
        Entry("POST", "/admin/v1/store/restore", rule, store.restore, work=True),
        Entry("POST", "/admin/v1/store/verify", operate, store.verify, work=True),
        Entry("POST", "/admin/v1/store/quantize", operate, store.quantize, work=True),
        Entry("POST", "/admin/v1/store/look", operate, store.look, work=True),
        Entry("POST", "/admin/v1/store/convert", rule, store.convert, work=True),
        Entry("POST", "/admin/v1/store/backup", operate, store.backup, work=True),
        Entry("POST", "/admin/v1/store/doctor", operate, store.doctor, work=True),
        Entry("POST", "/admin/v1/store/label", operate, store.label, work=True),
        Entry("POST", "/admin/v1/store/golden", operate, store.golden, work=True),
        Entry("GET", "/admin/v1/jobs", operate, store.jobs),
        Entry("GET", "/admin/v1/jobs/{id}", operate, store.job),
        Entry("DELETE", "/admin/v1/jobs/{id}", operate, store.cancel),
        Entry("GET", "/admin/v1/keys", rule, admin.list_keys),
        Entry("POST", "/admin/v1/keys", rule, admin.create_key),
        Entry("DELETE", "/admin/v1/keys/{id}", rule, admin.revoke_key),
    ]


def plugin_routes(plugins: PluginApi) -> list[Entry]:
    return [
        Entry("GET", "/admin/v1/plugins", Role.OPERATOR, plugins.list),
        Entry("POST", "/admin/v1/plugins/install", Role.ADMIN, plugins.install),
        Entry("POST", "/admin/v1/plugins/trust", Role.ADMIN, plugins.trust),
        Entry("POST", "/admin/v1/plugins/untrust", Role.ADMIN, plugins.untrust),
        Entry("POST", "/admin/v1/plugins/verify", Role.OPERATOR, plugins.verify),
        Entry("POST", "/admin/v1/plugins/rm", Role.ADMIN, plugins.remove),
    ]


def config_routes(config: ConfigApi) -> list[Entry]:
    """A candidate names files for the daemon to look at, so that checking one is for admins too."""
    return [
        Entry("POST", "/admin/v1/reload", Role.ADMIN, config.reload),
        Entry("POST", "/admin/v1/config/check", Role.ADMIN, config.check),
        Entry("POST", "/admin/v1/config/diff", Role.ADMIN, config.diff),
        Entry("POST", "/admin/v1/config/apply", Role.ADMIN, config.apply),
        Entry("POST", "/admin/v1/config/rollback", Role.ADMIN, config.roll_back),
        Entry("GET", "/admin/v1/config/change", Role.OPERATOR, config.change),
        Entry("GET", "/admin/v1/config/history", Role.OPERATOR, config.revisions),
        Entry(
            "GET", "/admin/v1/config/history/{number:[0-9]{1,15}}", Role.OPERATOR, config.revision
        ),
    ]
