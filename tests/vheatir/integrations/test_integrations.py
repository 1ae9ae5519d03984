"""Our weights in spandrel and deepinv: they load there, give the same results, and solve what they are used for."""

import json

import pytest
import skimage.data
import torch
from torch.testing import assert_close

from vheatir import weights
from vheatir.archs.networks import NETWORKS, name_of
from vheatir.archs.vheatir_arch import VHeatIR
from vheatir.archs.vheatunet_arch import VHeatUNet
from vheatir.errors import UserError


def random_image(side, channels=3):
    pixels = torch.from_numpy(skimage.data.chelsea()[60 : 60 + side, 100 : 100 + side].copy())
    image = pixels.permute(2, 0, 1)[None].float() / 255
    return image if channels == 3 else image.mean(1, keepdim=True)


class TestSpandrel:
    @pytest.fixture(autouse=True)
    def plugin(self):
        self.spandrel = pytest.importorskip("spandrel", reason="pip install 'vheatir[integrations]'")
        from vheatir.integrations import spandrel as plugin

        plugin.install()
        plugin.install()  # hosts may do so twice

    @pytest.mark.parametrize("name", weights.available())
    def test_shipped_weights_load_and_give_what_ours_give(self, name):
        model = self.spandrel.ModelLoader().load_from_file(weights.find(name)).eval()
        network, metadata = weights.load(name)
        assert model.architecture.id == name_of(network) and model.purpose == "Restoration" and model.scale == 1
        assert model.input_channels == model.output_channels == (1 if metadata["color"] == "gray" else 3)
        assert model.model.config["dim"] == network.config["dim"]
        image = random_image(33, model.input_channels)[..., :29]
        network.config["padding"] = "reflect"  # spandrel sees tensors only, which tell nothing of it
        with torch.inference_mode():
            expected = network(image)
        result = model(image)
        assert not torch.equal(result, image)
        assert_close(result, expected.clamp(0, 1))
        assert_close(model.to(torch.bfloat16)(image.bfloat16()).float(), result, atol=0.03, rtol=0)
        assert_close(model.to(torch.float16)(image.half()).float(), result, atol=0.03, rtol=0)

    def test_u_shaped_network_loads_and_gives_what_ours_gives(self):
        network = VHeatUNet(dim=8, encoder=[1], middle=1, decoder=[1], attention=["heat", "mean"]).eval()
        torch.nn.init.normal_(network.conv_last.weight, std=0.1)
        model = self.spandrel.ModelLoader().load_from_state_dict(network.state_dict()).eval()
        assert model.architecture.id == "VHeatUNet" and model.tags == ["8dim", "3 blocks"]
        with torch.inference_mode():
            assert_close(model(random_image(33)), network(random_image(33)).clamp(0, 1))

    def test_other_architectures_are_still_found(self):
        other = next(entry for entry in self.spandrel.MAIN_REGISTRY if entry.architecture.id not in NETWORKS)
        assert not self.spandrel.MAIN_REGISTRY["VHeatIR"].detect({"conv_first.weight": 0, "conv_last.weight": 0})
        assert other in self.spandrel.MAIN_REGISTRY.architectures()

    def test_weights_that_need_a_level_are_refused(self):
        state = VHeatIR(dim=8, depths=(1,), embed_size=4, level_map=True).state_dict()
        with pytest.raises(UserError, match="level"):
            self.spandrel.ModelLoader().load_from_state_dict(state)


class TestDeepinv:
    @pytest.fixture(autouse=True)
    def wrapper(self):
        self.deepinv = pytest.importorskip("deepinv", reason="pip install 'vheatir[integrations]'")
        from vheatir.integrations.deepinv import HeatDenoiser

        self.HeatDenoiser = HeatDenoiser

    @pytest.mark.parametrize("channels", [1, 3])
    def test_it_denoises(self, channels):
        clean = random_image(64, channels)
        noisy = clean + 25 / 255 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            result = self.HeatDenoiser()(noisy, 25 / 255)
        assert result.shape == clean.shape
        assert (result - clean).square().mean() < (noisy - clean).square().mean() / 6

    def test_plug_and_play_deblurring_gains_two_decibels(self):
        from deepinv.optim import L2, PnP, optim_builder

        clean = random_image(96)
        blur = self.deepinv.physics.functional.blur.gaussian_blur(sigma=(1.6, 1.6))
        noise = self.deepinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(0))
        physics = self.deepinv.physics.BlurFFT(clean.shape[1:], filter=blur, noise_model=noise)
        blurred = physics(clean)
        steps = 10
        sigmas = [0.19 * (0.02 / 0.19) ** (i / (steps - 1)) for i in range(steps)]
        denoiser = self.HeatDenoiser(inject_noise=True, generator=torch.Generator().manual_seed(0))
        solver = optim_builder(
            iteration="HQS",
            prior=PnP(denoiser=denoiser),
            data_fidelity=L2(),
            max_iter=steps,
            early_stop=False,
            params_algo={"stepsize": [(sigma / 0.03) ** 2 for sigma in sigmas], "g_param": sigmas},
        )
        with torch.no_grad():
            restored = solver(blurred, physics)
        before, after = (-10 * (image - clean).square().mean().log10() for image in (blurred, restored))
        assert after > before + 2

    def test_what_does_not_fit_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="task 'jpeg'"):
            self.HeatDenoiser("jpeg_color_blind")
        with pytest.raises(ValueError, match="channel"):
            self.HeatDenoiser()(torch.rand(1, 2, 8, 8), 0.1)
        network = VHeatIR(dim=8, depths=(1,), embed_size=4, level_map=True)
        config = {"config": json.dumps(network.config), "task": "denoise", "color": "color"}
        weights.save(tmp_path / "x.safetensors", network.state_dict(), config | {"levels": "0-55", "license": "none"})
        with pytest.raises(UserError, match="inject_noise"):
            self.HeatDenoiser(tmp_path / "x.safetensors", inject_noise=True)
        sigma = torch.tensor([0.1, 0.2])
        assert self.HeatDenoiser(tmp_path / "x.safetensors")(torch.rand(2, 3, 8, 8), sigma).shape == (2, 3, 8, 8)
