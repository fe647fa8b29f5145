"""hf:mask2former-r50 rewritten by faseg, written by vitrewrite.

    add dfpq(queries="focus", keys="conditional") to decoder
    add hrca(omega=32, cells="top") to decoder
    train every parameter

Takes images 3x512x512 (other sizes too, in multiples of 32), RGB; resized to 512x512
(bilinear); values from 0 to 1, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225) (a
default: the model does not say). Returns masks with scores of 150 classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ConditionalPosition(nn.Module):
    """Positions made from features: a depthwise convolution of a map [B, C, H, W]."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.zeros(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class ProjectedPosition(nn.Module):
    """Positions made from a map of the backbone: 1x1 convolution, group norm, depthwise one."""

    def __init__(self, channels, dim):
        super().__init__()
        self.channels, self.dim = channels, dim
        self.projection = nn.Parameter(torch.zeros(dim, channels, 1, 1))
        self.projection_bias = nn.Parameter(torch.zeros(dim))
        self.norm_weight = nn.Parameter(torch.zeros(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        self.weight = nn.Parameter(torch.zeros(dim, 1, 3, 3))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        x = F.conv2d(x, self.projection, self.projection_bias)
        x = F.group_norm(x, 32, self.norm_weight, self.norm_bias)
        return F.conv2d(x, self.weight, self.bias, padding=1, groups=self.dim)


class FineLevel(nn.Module):
    """A map [B, C, H, W] as a level: [H W, B, C], with an embedding that tells it apart."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.level_embed = nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        return (x + self.level_embed[:, None, None]).flatten(2).permute(2, 0, 1)


class CellSelection(nn.Module):
    """Keeps the keys and positions, [H W, B, C], that lie in the cells with most attention."""

    def __init__(self, omega=32):
        super().__init__()
        self.omega = omega

    def forward(self, attention, keys, positions, like):
        wide = torch.promote_types(attention.dtype, torch.float32)
        score = attention.detach().sum(1, dtype=wide)
        pixels = self.pixels(score, like.shape[-2], like.shape[-1])
        index = pixels.t()[:, :, None].expand(-1, -1, keys.shape[2])
        return keys.gather(0, index), positions.gather(0, index)

    def pixels(self, score, height, width):
        count = score.shape[1]
        side = math.isqrt(height * width // count)
        rows, columns = height // side, width // side
        if rows * columns != count or count < self.omega:
            raise ValueError(
                f"{count} cells on {height}x{width} pixels: sides must be multiples of 32 and give "
                f"{self.omega} cells or more"
            )
        cells = score.topk(count // self.omega).indices
        first = cells // columns * (side * width) + cells % columns * side
        steps = torch.arange(side, device=score.device)
        inside = (steps[:, None] * width + steps).flatten()
        return (first[:, :, None] + inside).flatten(1)


class MaskPool(nn.Module):
    """Weights [B, queries, h w] of a mean over the background, or foreground, of masks."""

    def forward(self, masks, like):
        masks = F.interpolate(masks.detach(), like.shape[-2:], mode="bilinear", align_corners=False)
        probable = masks.flatten(2).sigmoid()
        side = (probable < 0.5).to(masks.dtype)
        return side / (side.sum(-1, keepdim=True) + 1e-06)


class PositionalQueries(nn.Module):
    """h(x + B), where x tells where a query looks; h is a perceptron of two layers."""

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.h = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, bias, weights=None, positions=None):
        if weights is None or positions is None:
            x = self.encoded(self.grid(bias))[:, None]
        else:
            x = torch.einsum("bqn,bcn->qbc", weights, positions.flatten(2))
        return self.h(x + bias)

    def grid(self, like):
        count = like.shape[0]
        side = int((count - 1) ** 0.5) + 1
        number = torch.arange(count, device=like.device)
        rows, columns = number // side, number % side
        return (torch.stack([rows, columns], dim=1).to(like.dtype) + 0.5) / side

    def encoded(self, points):
        number = torch.arange(self.dim // 4, device=points.device, dtype=points.dtype)
        angle = points[..., None] * (2 * math.pi) / 10000 ** (number / (self.dim // 4))
        return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class ResNetConvLayer(nn.Module):
    def __init__(self, dim, out_dim, kernel_size, stride, padding, activation):
        super().__init__()
        self.convolution = nn.Conv2d(
            dim, out_dim, kernel_size, stride=stride, padding=padding, bias=False
        )
        self.normalization = nn.BatchNorm2d(out_dim)
        self.activation = activation

    def forward(self, hidden_states):
        return self.activation(self.normalization(self.convolution(hidden_states)))


class ResNetEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = ResNetConvLayer(3, 64, 7, 2, 3, nn.ReLU())
        self.pooler = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, pixel_values):
        embedding = self.embedder(pixel_values)
        return self.pooler(embedding)


class ResNetShortCut(nn.Module):
    def __init__(self, dim, out_dim, stride):
        super().__init__()
        self.convolution = nn.Conv2d(dim, out_dim, 1, bias=False, stride=stride)
        self.normalization = nn.BatchNorm2d(out_dim)

    def forward(self, x):
        hidden_state = self.convolution(x)
        return self.normalization(hidden_state)


class ResNetBottleNeckLayer(nn.Module):
    """model.pixel_level_module.encoder.encoder.stages[*].layers[*]."""

    def __init__(self, shortcut, dim, out_dim, stride):
        super().__init__()
        self.shortcut = shortcut
        self.layer = nn.Sequential(
            ResNetConvLayer(dim, out_dim, 1, 1, 0, nn.ReLU()),
            ResNetConvLayer(out_dim, out_dim, 3, stride, 1, nn.ReLU()),
            ResNetConvLayer(out_dim, 4 * out_dim, 1, 1, 0, nn.Identity()),
        )
        self.activation = nn.ReLU()

    def forward(self, hidden_state):
        layer = self.layer(hidden_state)
        residual = self.shortcut(hidden_state)
        layer += residual
        return self.activation(layer)


class ResNetStage(nn.Module):
    """model.pixel_level_module.encoder.encoder.stages[*]."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class ResNetEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(
            [
                ResNetStage(
                    nn.Sequential(
                        ResNetBottleNeckLayer(ResNetShortCut(64, 256, 1), 64, 64, 1),
                        ResNetBottleNeckLayer(nn.Identity(), 256, 64, 1),
                        ResNetBottleNeckLayer(nn.Identity(), 256, 64, 1),
                    )
                ),
                ResNetStage(
                    nn.Sequential(
                        ResNetBottleNeckLayer(ResNetShortCut(256, 512, 2), 256, 128, 2),
                        *(ResNetBottleNeckLayer(nn.Identity(), 512, 128, 1) for _ in range(3)),
                    )
                ),
                ResNetStage(
                    nn.Sequential(
                        ResNetBottleNeckLayer(ResNetShortCut(512, 1024, 2), 512, 256, 2),
                        *(ResNetBottleNeckLayer(nn.Identity(), 1024, 256, 1) for _ in range(5)),
                    )
                ),
                ResNetStage(
                    nn.Sequential(
                        ResNetBottleNeckLayer(ResNetShortCut(1024, 2048, 2), 1024, 512, 2),
                        ResNetBottleNeckLayer(nn.Identity(), 2048, 512, 1),
                        ResNetBottleNeckLayer(nn.Identity(), 2048, 512, 1),
                    )
                ),
            ]
        )

    def forward(self, hidden_state):
        hidden_states = []
        for stage in self.stages:
            hidden_state = stage(hidden_state)
            hidden_states.append(hidden_state)
        return tuple(hidden_states)


class ResNetBackbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedder = ResNetEmbeddings()
        self.encoder = ResNetEncoder()

    def forward(self, pixel_values):
        embedding_output = self.embedder(pixel_values)
        encoder = self.encoder(embedding_output)
        return encoder, encoder[0]


class Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(nn.Module):
    """Attention of model.pixel_level_module.decoder.encoder.layers[*], 8 heads."""

    def __init__(self):
        super().__init__()
        self.sampling_offsets = nn.Linear(256, 192)
        self.attention_weights = nn.Linear(256, 96)
        self.value_proj = nn.Linear(256, 256)
        self.output_proj = nn.Linear(256, 256)

    def forward(
        self,
        hidden_states,
        attention_mask,
        position_embeddings,
        reference_points,
        spatial_shapes_list,
    ):
        batch_size, size1, _ = hidden_states.shape
        y = hidden_states + position_embeddings
        num_queries = y.shape[1]
        value = self.value_proj(hidden_states)
        value = value.masked_fill(attention_mask[..., None], 0.0)
        value = value.view(batch_size, size1, 8, 32)
        hidden_dim = value.shape[3]
        sampling_offsets = self.sampling_offsets(y).view(batch_size, num_queries, 8, 3, 4, 2)
        attention_weights = self.attention_weights(y).view(batch_size, num_queries, 8, 12)
        attention_weights = F.softmax(attention_weights, dim=-1).view(
            batch_size, num_queries, 8, 3, 4
        )
        offset_normalizer = torch.tensor(
            [[width, height] for height, width in spatial_shapes_list],
            dtype=torch.int64,
            device=reference_points.device,
        )
        sampling_locations = (
            reference_points[:, :, None, :, None, :]
            + sampling_offsets / offset_normalizer[None, None, None, :, None, :]
        )
        _, num_queries, num_heads, num_levels, num_points, _ = sampling_locations.shape
        value_list = value.split([height * width for height, width in spatial_shapes_list], dim=1)
        sampling_grids = sampling_locations * 2 - 1
        attention_weights = attention_weights.transpose(1, 2).reshape(
            batch_size * num_heads, 1, num_queries, num_levels * num_points
        )
        sampling_value_list = []
        for i, (value, (height, width)) in enumerate(zip(value_list, spatial_shapes_list)):
            value_l = value.flatten(2).transpose(1, 2).reshape(
                batch_size * num_heads, hidden_dim, height, width
            )
            sampling_grid_l = sampling_grids[:, :, :, i].transpose(1, 2).flatten(0, 1)
            sampling_value_l = F.grid_sample(value_l, sampling_grid_l, align_corners=False)
            sampling_value_list.append(sampling_value_l)
        y = torch.stack(sampling_value_list, dim=-2).flatten(-2) * attention_weights
        output = y.sum(-1).view(batch_size, num_heads * hidden_dim, num_queries)
        return self.output_proj(output.transpose(1, 2).contiguous())


class Mask2FormerPixelDecoderEncoderLayer(nn.Module):
    """model.pixel_level_module.decoder.encoder.layers[*], 256 wide."""

    def __init__(self):
        super().__init__()
        self.self_attn = Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention()
        self.self_attn_layer_norm = nn.LayerNorm(256)
        self.fc1 = nn.Linear(256, 1024)
        self.fc2 = nn.Linear(1024, 256)
        self.final_layer_norm = nn.LayerNorm(256)

    def forward(
        self,
        hidden_states,
        attention_mask,
        position_embeddings,
        reference_points,
        spatial_shapes_list,
    ):
        self_attn = self.self_attn(
            hidden_states,
            attention_mask,
            position_embeddings,
            reference_points,
            spatial_shapes_list,
        )
        hidden_states = hidden_states + self_attn
        hidden_states = self.self_attn_layer_norm(hidden_states)
        y = F.relu(self.fc1(hidden_states))
        fc2 = self.fc2(y)
        hidden_states = hidden_states + fc2
        hidden_states = self.final_layer_norm(hidden_states)
        clamp_value = torch.finfo(hidden_states.dtype).max - 1000
        return torch.where(
            torch.isfinite(hidden_states).all(),
            hidden_states,
            torch.clamp(hidden_states, min=-clamp_value, max=clamp_value),
        ) if self.training else hidden_states


class Mask2FormerPixelDecoderEncoderOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Mask2FormerPixelDecoderEncoderLayer() for _ in range(6))

    def forward(
        self, inputs_embeds, attention_mask, position_embeddings, spatial_shapes_list, valid_ratios
    ):
        dtype = valid_ratios.dtype
        device = inputs_embeds.device
        reference_points_list = []
        for i, (height, width) in enumerate(spatial_shapes_list):
            y = torch.linspace(0.5, height - 0.5, height, dtype=dtype, device=device)
            z = torch.linspace(0.5, width - 0.5, width, dtype=dtype, device=device)
            ref_y, ref_x = torch.meshgrid(y, z, indexing="ij")
            ref_y = ref_y.reshape(-1)[None] / (valid_ratios[:, None, i, 1] * height)
            ref_x = ref_x.reshape(-1)[None] / (valid_ratios[:, None, i, 0] * width)
            ref = torch.stack((ref_x, ref_y), -1)
            reference_points_list.append(ref)
        reference_points = torch.cat(reference_points_list, 1)
        reference_points = reference_points[:, :, None] * valid_ratios[:, None]
        for layer in self.layers:
            inputs_embeds = layer(
                inputs_embeds,
                attention_mask,
                position_embeddings,
                reference_points,
                spatial_shapes_list,
            )
        return inputs_embeds


class Mask2FormerPixelDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.level_embed = nn.Parameter(torch.zeros(3, 256))
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(p, 256, 1), nn.GroupNorm(32, 256)) for p in (2048, 1024, 512)
        )
        self.encoder = Mask2FormerPixelDecoderEncoderOnly()
        self.mask_projection = nn.Conv2d(256, 256, 1)
        self.adapter_1 = nn.Sequential(nn.Conv2d(256, 256, 1, bias=False), nn.GroupNorm(32, 256))
        self.layer_1 = nn.Sequential(
            nn.Conv2d(256, 256, 3, padding=1, bias=False), nn.GroupNorm(32, 256), nn.ReLU()
        )
        self.dfpq_position_0 = ConditionalPosition(256)
        self.dfpq_position_1 = ConditionalPosition(256)
        self.dfpq_position_2 = ConditionalPosition(256)
        self.dfpq_position_3 = ProjectedPosition(256, 256)

    def forward(self, features, hidden_state):
        input_embeds_flat = []
        masks_flat = []
        level_pos_embed_flat = []
        spatial_shapes_list = []
        masks = []
        positions = []
        for i, (input_projection, dfpq_position, feature) in enumerate(
            zip(
                self.input_projections,
                (self.dfpq_position_0, self.dfpq_position_1, self.dfpq_position_2),
                features[:0:-1],
            )
        ):
            x = input_projection(feature)
            B, _, height, width = x.shape
            # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
            position = dfpq_position(x)
            mask = torch.zeros((B, height, width), device=x.device, dtype=torch.bool)
            y = position.flatten(2).transpose(1, 2)
            input_embeds_flat.append(x.flatten(2).transpose(1, 2))
            masks_flat.append(mask.flatten(1))
            level_pos_embed_flat.append(y + self.level_embed[i].view(1, 1, -1))
            spatial_shapes_list.append((height, width))
            masks.append(mask)
            positions.append(position)
        input_embeds_flat = torch.cat(input_embeds_flat, 1)
        masks_flat = torch.cat(masks_flat, 1)
        level_pos_embed_flat = torch.cat(level_pos_embed_flat, 1)
        height, width = spatial_shapes_list[0]
        height2, width2 = spatial_shapes_list[1]
        dtype = input_embeds_flat.dtype
        valid_ratios = []
        for mask, (height3, width3) in zip(masks, spatial_shapes_list):
            valid_height = torch.sum(~mask[:, :, 0], 1)
            valid_width = torch.sum(~mask[:, 0, :], 1)
            valid_ratio_height = valid_height.to(dtype) / height3
            valid_ratio_width = valid_width.to(dtype) / width3
            valid_ratios.append(torch.stack([valid_ratio_width, valid_ratio_height], -1))
        valid_ratios = torch.stack(valid_ratios, 1)
        last_hidden_state = self.encoder(
            input_embeds_flat, masks_flat, level_pos_embed_flat, spatial_shapes_list, valid_ratios
        )
        batch_size, size1, _ = last_hidden_state.shape
        encoder_output = torch.split(
            last_hidden_state,
            [height * width, height2 * width2, size1 - (height * width + height2 * width2)],
            dim=1,
        )
        current_fpn = self.adapter_1(features[0])
        _, _, size2, size3 = current_fpn.shape
        outputs = [
            x.transpose(1, 2).view(batch_size, -1, height4, width4)
            for x, (height4, width4) in zip(encoder_output, spatial_shapes_list)
        ]
        y = F.interpolate(outputs[2], size=(size2, size3), mode="bilinear", align_corners=False)
        out = current_fpn + y
        out = self.layer_1(out)
        # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
        return (
            tuple(outputs),
            self.mask_projection(out),
            out,
            *positions,
            self.dfpq_position_3(hidden_state),
        )


class Mask2FormerPixelLevelModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = ResNetBackbone()
        self.decoder = Mask2FormerPixelDecoder()

    def forward(self, pixel_values):
        features, hidden_state = self.encoder(pixel_values)
        y, mask_projection, out, *positions = self.decoder(features, hidden_state)
        return features[3], mask_projection, y, out, *positions


class Mask2FormerAttention(nn.Module):
    """Attention, 8 heads."""

    def __init__(self):
        super().__init__()
        self.k_proj = nn.Linear(256, 256)
        self.v_proj = nn.Linear(256, 256)
        self.q_proj = nn.Linear(256, 256)
        self.out_proj = nn.Linear(256, 256)

    def forward(self, hidden_states, query_position):
        target_len, batch_size, embed_dim = hidden_states.shape
        hidden_states = hidden_states.permute(1, 0, 2)
        position_embeddings = query_position.permute(1, 0, 2)
        y = hidden_states + position_embeddings
        query_states = self.q_proj(y) * 32**-0.5
        tensor = self.k_proj(y)
        key_states = tensor.view(batch_size, -1, 8, 32).transpose(1, 2).contiguous()
        tensor = self.v_proj(hidden_states)
        value_states = tensor.view(batch_size, -1, 8, 32).transpose(1, 2).contiguous()
        y = query_states.view(batch_size, target_len, 8, 32).transpose(1, 2).contiguous()
        query_states = y.view(batch_size * 8, -1, 32)
        key_states = key_states.view(batch_size * 8, -1, 32)
        source_len = key_states.shape[1]
        value_states = value_states.view(batch_size * 8, -1, 32)
        attn_weights = torch.bmm(query_states, key_states.transpose(1, 2))
        attn_weights = F.softmax(attn_weights, dim=-1)
        attn_weights_reshaped = attn_weights.view(batch_size, 8, target_len, source_len)
        attn_weights = attn_weights_reshaped.view(batch_size * 8, target_len, source_len)
        attn_output = torch.bmm(attn_weights, value_states)
        attn_output = attn_output.view(batch_size, 8, target_len, 32).transpose(1, 2).reshape(
            batch_size, target_len, embed_dim
        )
        return self.out_proj(attn_output).permute(1, 0, 2)


class MultiheadAttention(nn.Module):
    """Attention of model.transformer_module.decoder.hrca_layers[*], 8 heads."""

    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(768, 256))
        self.in_proj_bias = nn.Parameter(torch.zeros(768))
        self.out_proj = nn.Linear(256, 256)

    def forward(self, query, key, value, attn_mask=None):
        tgt_len, bsz, _ = query.shape
        src_len = key.shape[0]
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        b_q, b_k, b_v = self.in_proj_bias.chunk(3)
        q = F.linear(query, w_q, b_q)
        k = F.linear(key, w_k, b_k)
        v = F.linear(value, w_v, b_v)
        q = q.view(tgt_len, bsz * 8, 32).transpose(0, 1)
        k = k.view(src_len, bsz * 8, 32).transpose(0, 1)
        v = v.view(src_len, bsz * 8, 32).transpose(0, 1)
        if attn_mask is not None:
            y = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(attn_mask, float("-inf"))
            q_scaled = q * 32**-0.5
            attn_weights = torch.baddbmm(y, q_scaled, k.transpose(-2, -1))
            attn_weights = F.softmax(attn_weights, dim=-1)
            y = torch.bmm(attn_weights, v)
        else:
            y = F.scaled_dot_product_attention(q, k, v, scale=32**-0.5)
        attn_output = y.transpose(0, 1)
        attn_output = attn_output.reshape(tgt_len * bsz, 256)
        attn_output = self.out_proj(attn_output)
        return attn_output.view(tgt_len, bsz, attn_output.shape[1])


class MultiheadAttentionWithWeights(MultiheadAttention):
    """Attention of model.transformer_module.decoder.layers[*], 8 heads."""

    def forward(self, query, key, value, attn_mask):
        tgt_len, bsz, _ = query.shape
        src_len = key.shape[0]
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(
            attn_mask, float("-inf")
        )
        w_q, w_k, w_v = self.in_proj_weight.chunk(3)
        b_q, b_k, b_v = self.in_proj_bias.chunk(3)
        q = F.linear(query, w_q, b_q)
        k = F.linear(key, w_k, b_k)
        v = F.linear(value, w_v, b_v)
        q = q.view(tgt_len, bsz * 8, 32).transpose(0, 1)
        k = k.view(src_len, bsz * 8, 32).transpose(0, 1)
        v = v.view(src_len, bsz * 8, 32).transpose(0, 1)
        scores = q * 32**-0.5 @ k.transpose(-2, -1) + attn_mask
        weights = scores.softmax(-1)
        attn_output = (weights @ v).transpose(0, 1)
        attn_output = attn_output.reshape(tgt_len * bsz, 256)
        attn_output = self.out_proj(attn_output)
        return (
            attn_output.view(tgt_len, bsz, attn_output.shape[1]),
            weights.unflatten(0, (-1, 8)).mean(1),
        )


class Mask2FormerMaskedAttentionDecoderLayerWithWeights(nn.Module):
    """model.transformer_module.decoder.layers[*], 256 wide."""

    def __init__(self):
        super().__init__()
        self.self_attn = Mask2FormerAttention()
        self.activation_fn = nn.ReLU()
        self.self_attn_layer_norm = nn.LayerNorm(256)
        self.cross_attn = MultiheadAttentionWithWeights()
        self.cross_attn_layer_norm = nn.LayerNorm(256)
        self.fc1 = nn.Linear(256, 2048)
        self.fc2 = nn.Linear(2048, 256)
        self.final_layer_norm = nn.LayerNorm(256)

    def forward(
        self,
        hidden_states,
        position_embeddings,
        encoder_hidden_states,
        encoder_attention_mask,
        query_position,
    ):
        y, weights = self.cross_attn(
            hidden_states + query_position,
            encoder_hidden_states + position_embeddings,
            encoder_hidden_states,
            encoder_attention_mask,
        )
        hidden_states = hidden_states + y
        hidden_states = self.cross_attn_layer_norm(hidden_states)
        self_attn = self.self_attn(hidden_states, query_position)
        hidden_states = hidden_states + self_attn
        hidden_states = self.self_attn_layer_norm(hidden_states)
        activation_fn = self.activation_fn(self.fc1(hidden_states))
        fc2 = self.fc2(activation_fn)
        return self.final_layer_norm(hidden_states + fc2), weights


class Mask2FormerMaskPredictor(nn.Module):
    def __init__(self):
        super().__init__()
        self.mask_embedder = nn.Sequential(
            nn.Sequential(nn.Linear(256, 256), nn.ReLU()),
            nn.Sequential(nn.Linear(256, 256), nn.ReLU()),
            nn.Sequential(nn.Linear(256, 256), nn.Identity()),
        )

    def forward(self, outputs, pixel_embeddings, attention_mask_target_size):
        mask_embeddings = self.mask_embedder(outputs.transpose(0, 1))
        outputs_mask = torch.einsum("bqc, bchw -> bqhw", mask_embeddings, pixel_embeddings)
        attention_mask = F.interpolate(
            outputs_mask, size=attention_mask_target_size, mode="bilinear", align_corners=False
        )
        attention_mask = attention_mask.sigmoid().flatten(2).unsqueeze(1).repeat(1, 8, 1, 1)
        return outputs_mask, (attention_mask.flatten(0, 1) < 0.15).detach()


class Mask2FormerMaskedAttentionDecoderLayer(nn.Module):
    """model.transformer_module.decoder.hrca_layers[*], 256 wide."""

    def __init__(self):
        super().__init__()
        self.self_attn = Mask2FormerAttention()
        self.activation_fn = nn.ReLU()
        self.self_attn_layer_norm = nn.LayerNorm(256)
        self.cross_attn = MultiheadAttention()
        self.cross_attn_layer_norm = nn.LayerNorm(256)
        self.fc1 = nn.Linear(256, 2048)
        self.fc2 = nn.Linear(2048, 256)
        self.final_layer_norm = nn.LayerNorm(256)

    def forward(
        self,
        hidden_states,
        position_embeddings,
        query_position_embeddings,
        encoder_hidden_states,
        query_position,
        encoder_attention_mask=None,
    ):
        cross_attn = self.cross_attn(
            hidden_states + query_position_embeddings,
            encoder_hidden_states + position_embeddings,
            encoder_hidden_states,
            encoder_attention_mask,
        )
        hidden_states = hidden_states + cross_attn
        hidden_states = self.cross_attn_layer_norm(hidden_states)
        self_attn = self.self_attn(hidden_states, query_position)
        hidden_states = hidden_states + self_attn
        hidden_states = self.self_attn_layer_norm(hidden_states)
        activation_fn = self.activation_fn(self.fc1(hidden_states))
        fc2 = self.fc2(activation_fn)
        return self.final_layer_norm(hidden_states + fc2)


class Mask2FormerMaskedAttentionDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            Mask2FormerMaskedAttentionDecoderLayerWithWeights() for _ in range(9)
        )
        self.layernorm = nn.LayerNorm(256)
        self.mask_predictor = Mask2FormerMaskPredictor()
        self.hrca_level = FineLevel(256)
        self.hrca_layers = nn.ModuleList(Mask2FormerMaskedAttentionDecoderLayer() for _ in range(4))
        self.hrca_cells = CellSelection()
        self.dfpq_pool = MaskPool()
        self.dfpq = PositionalQueries(256)

    def forward(
        self,
        inputs_embeds,
        multi_stage_positional_embeddings,
        pixel_embeddings,
        encoder_hidden_states,
        query_position_embeddings,
        feature_size_list,
        out,
        fine_positions,
        positions,
    ):
        # faseg.peft:18: add hrca(omega=32, cells="top") to decoder
        fine_features = self.hrca_level(out)
        intermediate_hidden_states = self.layernorm(inputs_embeds)
        outputs_mask, attention_mask = self.mask_predictor(
            intermediate_hidden_states, pixel_embeddings, feature_size_list[0]
        )
        # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
        weights = self.dfpq_pool(outputs_mask, positions[0])
        query_position = self.dfpq(query_position_embeddings, weights, positions[0])
        where = (attention_mask.sum(-1) != attention_mask.shape[2]).to(attention_mask.dtype)
        attention_mask = attention_mask * where.unsqueeze(-1)
        hidden_states = inputs_embeds
        for i in range(0, 9, 3):
            hidden_states, weights = self.layers[i](
                hidden_states,
                multi_stage_positional_embeddings[0],
                encoder_hidden_states[0],
                attention_mask,
                query_position,
            )
            # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
            query_position = self.dfpq(query_position_embeddings, weights, positions[0])
            # faseg.peft:18: add hrca(omega=32, cells="top") to decoder
            keys, key_positions = self.hrca_cells(
                weights, fine_features, fine_positions, pixel_embeddings
            )
            intermediate_hidden_states = self.layernorm(hidden_states)
            _, attention_mask = self.mask_predictor(
                intermediate_hidden_states, pixel_embeddings, feature_size_list[1]
            )
            where = (attention_mask.sum(-1) != attention_mask.shape[2]).to(attention_mask.dtype)
            attention_mask = attention_mask * where.unsqueeze(-1)
            hidden_states, weights = self.layers[i + 1](
                hidden_states,
                multi_stage_positional_embeddings[1],
                encoder_hidden_states[1],
                attention_mask,
                query_position,
            )
            # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
            query_position = self.dfpq(query_position_embeddings, weights, positions[1])
            intermediate_hidden_states = self.layernorm(hidden_states)
            _, attention_mask = self.mask_predictor(
                intermediate_hidden_states, pixel_embeddings, feature_size_list[2]
            )
            where = (attention_mask.sum(-1) != attention_mask.shape[2]).to(attention_mask.dtype)
            attention_mask = attention_mask * where.unsqueeze(-1)
            hidden_states, weights = self.layers[i + 2](
                hidden_states,
                multi_stage_positional_embeddings[2],
                encoder_hidden_states[2],
                attention_mask,
                query_position,
            )
            # faseg.peft:17: add dfpq(queries="focus", keys="conditional") to decoder
            query_position = self.dfpq(query_position_embeddings, weights, positions[2])
            # faseg.peft:18: add hrca(omega=32, cells="top") to decoder
            hidden_states = self.hrca_layers[i // 3](
                hidden_states, key_positions, query_position_embeddings, keys, query_position
            )
            intermediate_hidden_states = self.layernorm(hidden_states)
            _, attention_mask = self.mask_predictor(
                intermediate_hidden_states, pixel_embeddings, feature_size_list[0]
            )
            where = (attention_mask.sum(-1) != attention_mask.shape[2]).to(attention_mask.dtype)
            attention_mask = attention_mask * where.unsqueeze(-1)
        # faseg.peft:18: add hrca(omega=32, cells="top") to decoder
        hidden_states = self.hrca_layers[3](
            hidden_states,
            multi_stage_positional_embeddings[0],
            query_position,
            encoder_hidden_states[0],
            query_position,
            attention_mask,
        )
        intermediate_hidden_states = self.layernorm(hidden_states)
        predicted_mask, _ = self.mask_predictor(
            intermediate_hidden_states, pixel_embeddings, feature_size_list[0]
        )
        return hidden_states.transpose(1, 0), predicted_mask, intermediate_hidden_states


class Mask2FormerTransformerModule(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries_embedder = nn.Embedding(100, 256)
        self.queries_features = nn.Embedding(100, 256)
        self.decoder = Mask2FormerMaskedAttentionDecoder()
        self.level_embed = nn.Embedding(3, 256)

    def forward(self, multi_scale_features, mask_features, out, positions):
        encoder_hidden_states = []
        multi_stage_features = []
        for i, multi_scale_feature in enumerate(multi_scale_features):
            y = multi_scale_feature.flatten(2) + self.level_embed.weight[i][None, :, None]
            encoder_hidden_states.append(y.permute(2, 0, 1))
            multi_stage_features.append(y)
        batch_size = multi_stage_features[0].shape[0]
        fine_positions = positions[3].flatten(2).permute(2, 0, 1)
        query_embeddings = self.queries_embedder.weight.unsqueeze(1).repeat(1, batch_size, 1)
        query_features = self.queries_features.weight.unsqueeze(1).repeat(1, batch_size, 1)
        return self.decoder(
            query_features,
            [position.flatten(2).permute(2, 0, 1) for position in positions[:3]],
            mask_features,
            encoder_hidden_states,
            query_embeddings,
            [
                (multi_scale_feature2.shape[2], multi_scale_feature2.shape[3])
                for multi_scale_feature2 in multi_scale_features
            ],
            out,
            fine_positions,
            positions[:3],
        )


class Mask2FormerModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.pixel_level_module = Mask2FormerPixelLevelModule()
        self.transformer_module = Mask2FormerTransformerModule()

    def forward(self, pixel_values):
        (
            encoder_last_hidden_state,
            decoder_last_hidden_state,
            multi_scale_features,
            out,
            *positions,
        ) = self.pixel_level_module(pixel_values)
        y, predicted_mask, intermediate_hidden_states = self.transformer_module(
            multi_scale_features, decoder_last_hidden_state, out, positions
        )
        return (
            encoder_last_hidden_state,
            decoder_last_hidden_state,
            y,
            intermediate_hidden_states,
            predicted_mask,
        )


class Mask2FormerLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("empty_weight", torch.zeros(151))


class Mask2FormerForUniversalSegmentation(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = Mask2FormerModel()
        self.class_predictor = nn.Linear(256, 151)
        self.criterion = Mask2FormerLoss()

    def forward(self, pixel_values):
        (
            encoder_last_hidden_state,
            pixel_decoder_last_hidden_state,
            transformer_decoder_last_hidden_state,
            decoder_output,
            predicted_mask,
        ) = self.model(pixel_values)
        return {
            "class_queries_logits": self.class_predictor(decoder_output.transpose(0, 1)),
            "masks_queries_logits": predicted_mask,
            "encoder_last_hidden_state": encoder_last_hidden_state,
            "pixel_decoder_last_hidden_state": pixel_decoder_last_hidden_state,
            "transformer_decoder_last_hidden_state": transformer_decoder_last_hidden_state,
        }


# What passes put in, for vitrewrite to know it again.
ConditionalPosition.inserted_by = "dfpq"
ProjectedPosition.inserted_by = "dfpq"
FineLevel.inserted_by = "hrca"
CellSelection.inserted_by, CellSelection.changes = "hrca", (1, 2)
MaskPool.inserted_by = "dfpq"
PositionalQueries.inserted_by = "dfpq"
INPUT = "1x3x512x512"


def build():
    """The model without its weights: many are zero until `load` brings them."""
    return Mask2FormerForUniversalSegmentation()


def load(path):
    """The model with the weights of a safetensors file, in eval mode."""
    from safetensors.torch import load_file

    model = build()
    model.load_state_dict(load_file(path))
    return model.eval()
