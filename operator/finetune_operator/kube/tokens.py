"""TokenReview: the API server says whose token a trainer shows."""

from __future__ import annotations

from finetune_operator.kube.client import KubeClient
from finetune_operator.progress.identity import TokenIdentity, parse_token_review


class KubeTokenReviewer:
    """Implements `progress.ports.TokenReviewer`."""

    def __init__(self, api: KubeClient) -> None:
        self._api = api

    async def review_token(self, token: str, *, audience: str) -> TokenIdentity | None:
        """Return who the token belongs to, None when it is refused. Raises ApiError."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        return parse_token_review(await self._api.post("/apis/authentication.k8s.io/v1/tokenreviews", review))
