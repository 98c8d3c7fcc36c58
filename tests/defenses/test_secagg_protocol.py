"""The protocol's steps: exact sums with drop-outs anywhere, and what a view does not show."""

from itertools import product

import numpy as np
import pytest
from cryptography.exceptions import InvalidTag
from scipy import stats

from defenses import ThresholdError
from defenses.secagg_protocol.client import Client
from defenses.secagg_protocol.execution import answering, execute, survivors_of
from defenses.secagg_protocol.keys import KeyPair, mask, seal, self_mask, unseal
from defenses.secagg_protocol.messages import STEPS, Unmasking
from defenses.secagg_protocol.server import Server
from defenses.secagg_protocol.sharing import combine, split

WIDTH = 512


def ring_words(clients, width=WIDTH, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, (clients, width), dtype=np.uint64)


def secrets(clients, seed=0):
    rng = np.random.default_rng(100 + seed)
    return [rng.bytes(32) for _ in range(clients)]


def uniformity(words):
    """The p-value of a chi-square test of every byte's value."""
    counts = np.bincount(np.ascontiguousarray(words).view(np.uint8), minlength=256)
    return stats.chisquare(counts).pvalue


def looks_uniform(words):
    return uniformity(words) > 1e-3


@pytest.mark.parametrize("clients", [2, 3, 5])
def test_the_sum_is_exact_in_the_ring(clients):
    words = ring_words(clients)
    run = execute(words, secrets(clients), 2, {})
    assert run.survivors == tuple(range(clients))
    assert np.array_equal(run.total, words.sum(axis=0, dtype=np.uint64))
    assert not any((run.uploads[client] == words[client]).any() for client in run.survivors)


@pytest.mark.parametrize("steps", [*product(STEPS, STEPS)])
def test_the_sum_is_exact_whoever_leaves_when(steps):
    words = ring_words(5)
    drop_outs = {1: steps[0], 3: steps[1]}
    run = execute(words, secrets(5), 3, drop_outs)
    in_the_sum = [c for c in range(5) if drop_outs.get(c, "unmask") == "unmask"]
    assert list(run.survivors) == in_the_sum
    assert survivors_of(5, 3, drop_outs) == run.survivors
    assert np.array_equal(run.total, words[in_the_sum].sum(axis=0, dtype=np.uint64))


@pytest.mark.parametrize("step", STEPS)
def test_below_the_threshold_the_sum_stays_closed(step):
    done = {"advertise": "advertised", "share": "shared", "upload": "upload", "unmask": "unmasking"}
    expected = f"3 of 5 clients .*{done[step]}.*, 4 are needed, so the sum stays closed"
    drop_outs = {0: step, 4: step}
    with pytest.raises(ThresholdError, match=expected):
        execute(ring_words(5), secrets(5), 4, drop_outs)
    with pytest.raises(ThresholdError, match=expected):
        survivors_of(5, 4, drop_outs)


def test_drop_outs_take_the_steps_before_theirs():
    assert [answering(step, 2, {1: "upload"}) for step in STEPS] == [(0, 1), (0, 1), (0,), (0,)]


@pytest.mark.parametrize("length", [16, 32])
def test_any_threshold_of_shares_gives_the_secret(length):
    secret = np.random.default_rng(1).bytes(length)
    shares = dict(enumerate(split(secret, 3, 5)))
    for holders in ([0, 1, 2], [4, 2, 0], [1, 2, 3, 4]):
        assert combine({holder: shares[holder] for holder in holders}, 3) == secret


def test_fewer_shares_than_the_threshold_say_nothing(monkeypatch):
    # The library draws from the operating system; a seed makes this test repeatable.
    monkeypatch.setattr("Crypto.Protocol.SecretSharing.rng", np.random.default_rng(2).bytes)
    # Shares of two are as uniform for a secret of zeros as for any other, and what they combine
    # to is neither the secret nor the same twice.
    taken, guesses = [], []
    for _ in range(2000):
        shares = split(bytes(16), 3, 5)
        taken.append(np.frombuffer(shares[0] + shares[3], dtype=np.uint8))
        guesses.append(combine({0: shares[0], 3: shares[3]}, 3))
    assert looks_uniform(np.concatenate(taken))
    assert looks_uniform(np.frombuffer(b"".join(guesses), dtype=np.uint8))
    assert bytes(16) not in guesses
    assert len(set(guesses)) == len(guesses)
    # Each pair of bytes at the same place is as good as independent of each other too.
    pairs = np.stack(taken).reshape(2000, 2, 16).astype(float)
    correlations = [np.corrcoef(pairs[:, 0, i], pairs[:, 1, i])[0, 1] for i in range(16)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(2000)


def test_with_too_few_shares_an_upload_keeps_its_mask():
    """A server that counts wrongly opens nothing: its result is uniform."""
    clients = [Client(i, 4, 3, secret) for i, secret in enumerate(secrets(4))]
    server, honest = Server(4, 2), Server(4, 3)
    keys = [client.advertise() for client in clients]
    server.collect_keys(keys)
    sealed = {client.index: client.share(keys) for client in clients}
    routed = server.route_shares(sealed)
    words = np.zeros((4, 4096), dtype=np.uint64)
    uploads = {c.index: c.upload(words[c.index], routed[c.index]) for c in clients}
    survivors = server.collect_uploads(uploads)
    answers = [client.unmask(survivors) for client in clients]
    assert looks_uniform(server.open_sum(answers[:2]))
    honest.collect_keys(keys)
    honest.route_shares(sealed)
    honest.collect_uploads(uploads)
    assert not honest.open_sum(answers[:3]).any()


def test_the_server_refuses_wrong_shares_of_a_key():
    clients = [Client(i, 4, 3, secret) for i, secret in enumerate(secrets(4))]
    server = Server(4, 3)
    keys = server.collect_keys([client.advertise() for client in clients])
    routed = server.route_shares({client.index: client.share(keys) for client in clients})
    words = ring_words(4)
    survivors = server.collect_uploads(
        {c.index: c.upload(words[c.index], routed[c.index]) for c in clients[:3]}
    )
    answers = [client.unmask(survivors) for client in clients[:3]]
    forged = Unmasking(0, answers[0].self_seeds, {3: bytes(32)})
    with pytest.raises(ValueError, match="wrong shares of the key of client 3"):
        server.open_sum([forged, *answers[1:]])


@pytest.mark.parametrize("drop_outs", [{}, {2: "upload"}, {2: "unmask"}])
def test_one_upload_looks_uniform(drop_outs):
    run = execute(np.zeros((4, 4096), dtype=np.uint64), secrets(4), 3, drop_outs)
    for upload in run.uploads.values():
        assert looks_uniform(upload)
    # So do partial sums: only the sum of all uploads loses its masks.
    first, second, *_ = run.uploads.values()
    assert looks_uniform(first + second)
    # And the difference of two uploads of the same client in two executions.
    other = execute(np.zeros((4, 4096), dtype=np.uint64), secrets(4, seed=1), 3, drop_outs)
    assert looks_uniform(run.uploads[0] - other.uploads[0])


def test_over_many_executions_an_uploads_p_values_are_uniform_too():
    words = np.zeros((3, 512), dtype=np.uint64)
    found = [uniformity(execute(words, secrets(3, seed), 2, {}).uploads[1]) for seed in range(100)]
    assert stats.kstest(found, "uniform").pvalue > 1e-3


def test_a_late_upload_stays_masked_after_its_key_was_opened():
    """Why masks are double: the server may call a client dropped and get its upload later."""
    clients = [Client(i, 4, 3, secret) for i, secret in enumerate(secrets(4))]
    server = Server(4, 3)
    keys = server.collect_keys([client.advertise() for client in clients])
    routed = server.route_shares({client.index: client.share(keys) for client in clients})
    uploads = [c.upload(np.zeros(4096, dtype=np.uint64), routed[c.index]) for c in clients]
    survivors = server.collect_uploads(dict(enumerate(uploads[:3])))
    answers = [client.unmask(survivors) for client in clients[:3]]
    assert not server.open_sum(answers).any()
    late_key = KeyPair(combine({a.client: a.mask_keys[3] for a in answers}, 3))
    late = uploads[3].copy()
    for peer in range(3):
        late += mask(late_key.agree(keys[peer].mask, b"mask"), len(late))
    assert late.any()
    assert looks_uniform(late)


def test_a_client_never_gives_both_kinds_of_shares():
    clients = [Client(i, 3, 2, secret) for i, secret in enumerate(secrets(3))]
    server = Server(3, 2)
    keys = server.collect_keys([client.advertise() for client in clients])
    routed = server.route_shares({client.index: client.share(keys) for client in clients})
    for client in clients:
        client.upload(np.zeros(4, dtype=np.uint64), routed[client.index])
    answer = clients[0].unmask([0, 1])
    assert set(answer.self_seeds) == {0, 1}
    assert set(answer.mask_keys) == {2}
    with pytest.raises(ValueError, match="may not have"):
        clients[0].unmask([0, 2])
    with pytest.raises(ValueError, match="may not have"):
        clients[1].unmask([0, 1, 7])


def test_equal_keys_are_refused():
    clients = [Client(i, 2, 2, secrets(1)[0]) for i in range(2)]
    with pytest.raises(ValueError, match="advertised the same key"):
        clients[0].share([client.advertise() for client in clients])


def test_sealed_shares_open_for_their_receiver_alone():
    ours, theirs = KeyPair(secrets(2)[0]), KeyPair(secrets(2)[1])
    key = ours.agree(theirs.public, b"channel")
    assert key == theirs.agree(ours.public, b"channel")
    assert key != ours.agree(theirs.public, b"mask")
    sealed = seal(key, 0, 1, b"shares")
    assert unseal(key, 0, 1, sealed) == b"shares"
    for sender, receiver, message in ((1, 0, sealed), (0, 2, sealed), (0, 1, sealed[:-1] + b"x")):
        with pytest.raises(InvalidTag):
            unseal(key, sender, receiver, message)


def test_masks_follow_their_keys():
    first, second = secrets(2)
    assert np.array_equal(mask(first, 64), mask(first, 64))
    assert not (mask(first, 64) == mask(second, 64)).any()
    assert not (self_mask(first[:16], 64) == self_mask(second[:16], 64)).any()


def test_uploads_follow_the_secrets():
    words = ring_words(3)
    first, again, other = (execute(words, secrets(3, seed), 2, {}) for seed in (0, 0, 1))
    for client in range(3):
        assert np.array_equal(first.uploads[client], again.uploads[client])
        assert not (first.uploads[client] == other.uploads[client]).any()
