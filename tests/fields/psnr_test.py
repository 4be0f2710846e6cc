import numpy as np
import pytest

from functa.fields import psnr


def test_mean_psnr_differs_from_psnr_of_mean_mse():
    mse = np.array([0.01, 0.1])
    assert psnr.psnr(mse).mean() == pytest.approx(15.0, abs=0.01)
    assert psnr.psnr(mse.mean()) == pytest.approx(12.6, abs=0.01)


def test_psnr_range_and_limit():
    assert psnr.psnr(np.array(255.0**2 / 100), data_range=255) == pytest.approx(20)
    assert psnr.psnr(np.array(0.0)) == pytest.approx(100)
