"""The video network: motion, mixing along it, a start that is the image network, weights from which it starts."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from vheatir.archs import networks
from vheatir.archs.alignment import enlarged, motion, motion_there_and_back, warped
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.archs.vheatvideo_arch import ClipHeatAttention, VHeatVideoNet, config_from_state_dict
from vheatir.backbone import freeze
from vheatir.kernels.diffusion.reference import diffuse_reference

UNET = {"dim": 4, "encoder": [1, 1], "middle": 1, "decoder": [1, 1], "attention": ["heat"] * 3}
TINY = {**UNET, "mix_dim": 8, "mix_depth": 1}


def network(**changes):
    """A small network whose branches all count; those that start at zero would hide mistakes."""
    torch.manual_seed(0)
    net = VHeatVideoNet(**{**TINY, **changes})
    for name, parameter in net.named_parameters():
        if "scale" in name or name.startswith(("image.conv_last", "mixer.head", "mixer.place", "from_")):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


def texture(side, seed=0):
    """Smooth noise, (1, 1, side, side), about [0, 1]."""
    noise = torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return (F.avg_pool2d(noise, 5, 1, 2) - 0.5) * 4 + 0.5


@pytest.mark.parametrize("shift", [(0, 0), (1, -2), (5, 3), (-9, 6)])
def test_a_shift_is_found_to_a_fraction_of_a_pixel(shift):
    down, right = shift
    whole = texture(96)
    target = whole[..., 16:80, 16:80]
    source = whole[..., 16 - down : 80 - down, 16 - right : 80 - right]
    found = motion(target, source)[..., 12:-12, 12:-12]
    assert_close(found.mean((2, 3)), torch.tensor([[right, down]]).float(), atol=0.05, rtol=0)
    assert (found - found.mean((2, 3), keepdim=True)).abs().max() < 0.25


def test_noise_does_not_hide_the_motion():
    whole = texture(160)
    noise = 0.03 * torch.randn(2, 1, 128, 128, generator=torch.Generator().manual_seed(1))
    target = whole[..., 16:144, 16:144] + noise[:1]
    source = whole[..., 13:141, 18:146] + noise[1:]
    found = motion(target, source)[..., 16:-16, 16:-16]
    assert (found - torch.tensor([-2.0, 3.0])[:, None, None]).abs().mean() < 0.2


def test_flat_frames_do_not_move():
    assert not motion(torch.full((1, 1, 20, 24), 0.5), torch.full((1, 1, 20, 24), 0.5)).any()


def test_motion_is_trusted_where_it_returns_and_not_between_frames_of_different_scenes():
    whole = texture(112)
    target = whole[..., 16:96, 16:96]
    source = whole[..., 13:93, 20:100]
    other = texture(80, seed=1)
    there, trusted = motion_there_and_back(target.expand(2, -1, -1, -1), torch.cat([source, other]))
    assert_close(there, motion(target.expand(2, -1, -1, -1), torch.cat([source, other])))
    assert set(trusted.unique().tolist()) <= {0.0, 1.0} and trusted.shape == (2, 1, 80, 80)
    assert trusted[0, :, 12:-12, 12:-12].mean() > 0.95
    assert trusted[1].mean() < 0.3


def test_what_a_frame_hides_is_not_trusted():
    scene = texture(96)
    covered = scene.clone()
    covered[..., 30:66, 30:66] = texture(36, seed=2) + 0.5
    _, trusted = motion_there_and_back(scene, covered)
    assert trusted[..., 36:60, 36:60].mean() < 0.3
    assert trusted[..., :16].mean() > 0.85
    hidden = 1 - trusted  # made of squares of 5 x 5: what is left of each when it shrinks gives it back
    centers = -F.max_pool2d(-hidden, 5, 1, 2)
    assert torch.equal(F.max_pool2d(centers, 5, 1, 2), hidden)


def test_warping_undoes_a_shift():
    whole = texture(40)
    flow = torch.tensor([2.0, -1.0])[:, None, None].expand(1, 2, 30, 30)
    seen = warped(whole[..., 5:35, 5:35], flow, "bicubic")
    assert_close(seen[..., 3:-3, 3:-3], whole[..., 4:34, 7:37][..., 3:-3, 3:-3], atol=1e-5, rtol=1e-5)
    assert_close(enlarged(flow, (59, 60))[0, :, 0, 0], torch.tensor([4.0, -2.0]))


@pytest.mark.parametrize("frames", [torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 9)])
def test_motion_of_other_shapes_is_refused(frames):
    with pytest.raises(ValueError, match="two sets of gray frames"):
        motion(frames, torch.rand(1, 1, 8, 8))


def test_attention_is_the_operator_in_three_dimensions():
    layer = ClipHeatAttention(5, 3, (0.7, 4.0), (0.3, 2.0)).double()
    x = torch.randn(6, 6, 7, 5, dtype=torch.float64)
    time, space = layer.time_log_k.exp(), layer.space_log_k.exp()
    heat = diffuse_reference(x.view(2, 3, 6, 7, 5), torch.stack([time, space, space])[:, None]).flatten(0, 1)
    assert_close(layer(x), x * layer.linear(heat))
    reach = (2 * time).sqrt().sort().values[[0, -1]]
    assert_close(reach, torch.tensor([0.3, 2.0], dtype=torch.float64), rtol=1e-4, atol=0)


def test_it_begins_as_the_image_network():
    torch.manual_seed(1)
    image_network = VHeatUNet(**UNET).eval()
    for parameter in image_network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    net = VHeatVideoNet(**TINY).eval()
    net.load_state_dict(networks.adapted(net, image_network.state_dict()))
    clip = torch.rand(2, 15, 13, 18)
    with torch.no_grad():
        assert_close(net(clip), image_network(clip[:, 6:9]))
        assert torch.equal(net(clip[:, :3]), image_network(clip[:, :3]))


def test_a_gray_one_starts_from_a_color_image_network():
    net = VHeatVideoNet(**TINY, in_chans=1).eval()
    color = VHeatUNet(**UNET).eval()
    torch.nn.init.normal_(color.conv_last.weight, std=0.2)
    net.load_state_dict(networks.adapted(net, color.state_dict()))
    clip = torch.rand(1, 5, 12, 12)
    with torch.no_grad():
        assert_close(net(clip), color(clip[:, 2:3].expand(-1, 3, -1, -1)).mean(1, keepdim=True), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [3, 7])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 18)])
def test_any_size_keeps_its_shape(size, frames):
    net = network(frames=frames)
    restored = net(torch.rand(2, 3 * frames, *size))
    assert restored.shape == (2, 3, *size) and restored.isfinite().all()


def test_every_frame_counts_and_every_weight_gets_a_gradient():
    net = network().train()
    clip = torch.rand(1, 15, 16, 16, requires_grad=True)
    net(clip).square().mean().backward()
    assert (clip.grad.unflatten(1, (5, 3)).abs().amax((0, 2, 3, 4)) > 0).all()
    without = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.any()]
    assert without == []


def test_frames_that_agree_are_averaged_and_the_noise_that_is_left_is_known():
    net = network()
    torch.nn.init.zeros_(net.mixer.head.weight)
    torch.nn.init.constant_(net.mixer.head.bias, 1.0)  # weights of 1 / (1 + 5) each
    clean = torch.full((1, 1, 3, 64, 64), 0.5)
    noise = torch.randn(1, 5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mixed, left, _ = net.mixer(clean + 0.1 * noise)
    assert_close(left, torch.full_like(left, (1 / 3) ** 2 + 4 * (1 / 6) ** 2))
    assert_close((mixed - 0.5).var() / 0.01, left.mean(), rtol=0.05, atol=0)


def test_frames_are_left_out_where_they_are_not_trusted():
    net = network()
    clip = torch.rand(1, 5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    trusted = torch.ones(1, 4, 1, 8, 8)
    trusted[..., :4] = 0
    with torch.no_grad():
        mixed, left, _ = net.mixer(clip, trusted)
        freely, freely_left, _ = net.mixer(clip)
    assert torch.equal(mixed[..., :8], clip[:, 2, ..., :8]) and (left[..., :8] == 1).all()
    assert_close(mixed[..., 8:], freely[..., 8:])
    assert_close(left[..., 8:], freely_left[..., 8:])


def test_without_a_residual_the_mixed_frame_is_left():
    net = network()
    for parameter in net.image.conv_last.parameters():
        torch.nn.init.zeros_(parameter)
    clip = texture(32).expand(1, 15, -1, -1) + 0.02 * torch.randn(1, 15, 32, 32)
    with torch.no_grad():
        mixed, _, _ = net.mixer(*net.aligned(clip.unflatten(1, (5, 3))))
        assert_close(net(clip), mixed)
    assert (mixed - clip[:, 6:9]).abs().max() > 1e-3


def test_a_frozen_pass_and_bf16_are_near():
    net = network()
    clip = torch.rand(1, 15, 24, 20)
    with torch.no_grad():
        want = net(clip)
        assert_close(freeze(net)(clip), want, atol=1e-4, rtol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(net(clip), want, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str)
def test_a_network_of_another_type_restores_clips_of_that_type(dtype, tolerance):
    net = VHeatVideoNet(**TINY).eval()
    for name, parameter in net.named_parameters():
        if "scale" in name or name.startswith(("image.conv_last", "mixer.head", "mixer.place", "from_")):
            torch.nn.init.normal_(parameter, std=0.05)
    clip = texture(24).expand(1, 15, -1, -1).clone()
    with torch.no_grad():
        want = net.double()(clip.double())
        got = net.to(dtype)(clip.to(dtype))
    assert want.dtype == torch.float64 and got.dtype == dtype
    assert (want - clip[:, 6:9]).abs().mean() > 3 * tolerance  # it changes the clip by more than the rounding
    assert (got.double() - want).abs().mean() < tolerance


def test_in_float64_the_weights_of_frames_are_not_rounded():
    net = network().double()
    clip = torch.rand(1, 5, 3, 16, 16, dtype=torch.float64)
    mixed, left, _ = net.mixer(clip)
    assert (mixed - mixed.float().double()).abs().max() > 0
    assert (left - left.float().double()).abs().max() > 0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"frames": 4}, "frames must be one of 3, 5, 7"),
        ({"mix_dim": 0}, "mix_dim must be"),
        ({"mix_depth": 0.5}, "mix_depth must be"),
        ({"duration": [0, 1]}, "duration must be two rising positive lengths in frames"),
        ({"duration": [3, 0.3]}, "duration must be two rising"),
        ({"mix_reach": [6, 0.7]}, "mix_reach must be two rising positive lengths in pixels"),
        ({"reach": [5, 1]}, "reach must be two rising"),
        ({"encoder": []}, "encoder must be"),
    ],
)
def test_arguments_that_no_network_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VHeatVideoNet(**{**TINY, **changes})


def test_other_inputs_are_refused():
    with pytest.raises(ValueError, match=r"expected clips \(B, 15, H, W\) or images \(B, 3, H, W\)"):
        network()(torch.rand(1, 9, 8, 8))
    with pytest.raises(TypeError, match="floating point"):
        network()(torch.zeros(1, 15, 8, 8, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"as a torch.Tensor \(B, 15, H, W\), got ndarray"):
        network()(torch.zeros(1, 15, 8, 8).numpy())


@pytest.mark.parametrize("changes", [{}, {"frames": 3}, {"in_chans": 1}, {"mix_dim": 12, "mix_depth": 2}])
def test_configuration_is_read_from_the_weights(changes):
    net = network(**changes)
    config = config_from_state_dict(net.state_dict())
    assert config == {key: net.config[key] for key in config}
    assert networks.config_from_state_dict(net.state_dict()) == ("VHeatVideoNet", config)
    VHeatVideoNet(**config).load_state_dict(net.state_dict())


def test_weights_of_others_are_refused():
    with pytest.raises(ValueError, match="no VHeatVideoNet weights"):
        config_from_state_dict(VHeatUNet(**UNET).state_dict())
    with pytest.raises(ValueError, match="starts from the weights of a gray VHeatUNet"):
        networks.gray_from_color(network().state_dict())
