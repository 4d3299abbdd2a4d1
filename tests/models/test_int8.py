import torch

from afire_monai.models.folder import pack_int8, unpack_int8


def test_a_weight_moves_by_at_most_half_a_step_of_its_row():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 3, 8, 8, generator=generator) * torch.logspace(-3, 2, 64).reshape(64, 1, 1, 1)
    packed = pack_int8({"weight": weight})
    assert packed["weight"].dtype == torch.int8
    assert packed["weight"].shape == weight.shape
    step = weight.abs().amax((1, 2, 3)) / 127
    assert ((unpack_int8(packed)["weight"] - weight).abs().amax((1, 2, 3)) <= step * 0.5001).all()


def test_hand_computed_row():
    row = torch.tensor([1.27, -0.5, 0.004, 0.006]).repeat(2, 1024)
    packed = pack_int8({"w": row})
    assert packed["w"][0, :4].tolist() == [127, -50, 0, 1]
    torch.testing.assert_close(packed["w.scale"], torch.full((2,), 0.01))


def test_vectors_small_tensors_whole_numbers_and_rows_of_zeros_keep_their_values():
    tensors = {"bias": torch.rand(5000), "small": torch.rand(8, 8), "count": torch.ones(100, 100, dtype=torch.int64)}
    tensors["zeros"] = torch.zeros(100, 100)
    back = unpack_int8(pack_int8(tensors))
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
